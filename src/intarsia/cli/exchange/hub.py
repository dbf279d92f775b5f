"""``intarsia push`` and ``intarsia pull``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.cli.flags import Json, Positional


@dataclass(frozen=True)
class Push:
    """Put a pool or composed model into a repository of the hub, with a model card made of its record."""

    pool: Positional[Path]
    """Folder of the pool, or of a merged model; every file is checked first."""
    repository: Positional[str]
    """user/name; made if it is not there."""
    revision: str | None = None
    """The branch, made if it is not there; main if not given."""
    private: bool = False
    """Of a repository that is made."""
    evaluation: Path | None = None
    """A file with what `intarsia evaluate --json` said of it, for the card's table."""
    licence: str | None = None
    """As the hub names it (mit, apache-2.0), for the card."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Check and push."""
        from intarsia.console import ERR, facts, shown
        from intarsia.exchange.hub import push
        from intarsia.store.files import read_json

        found = None if self.evaluation is None else read_json(self.evaluation)
        with shown() as progress:
            url = push(
                self.pool,
                self.repository,
                revision=self.revision,
                private=self.private,
                evaluation=found,
                licence=self.licence,
                progress=progress,
                say=ERR.print,
            )
        if not self.json:
            facts({"pushed": self.pool, "to": self.repository, "commit": url})
        return {"pushed": str(self.pool), "to": self.repository, "commit": url}


@dataclass(frozen=True)
class Pull:
    """Get a pool or composed model from the hub: safetensors and JSON alone, every file against its hash."""

    repository: Positional[str]
    """user/name, or user/name@revision."""
    out: Path
    """New folder to write to."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Get and check."""
        from intarsia.console import facts, shown
        from intarsia.exchange.hub import pull

        with shown() as progress:
            names = pull(self.repository, self.out, progress=progress)
        if not self.json:
            facts({"pulled": self.repository, "to": self.out, "files": len(names)})
        return {"pulled": self.repository, "out": str(self.out), "files": names}
