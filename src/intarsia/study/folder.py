"""A comparison's folder: a record per run, found again if everything that decides about its numbers is as it was.

bench.json             what is compared: stream, backbone, budget; one per folder
<method>-<seed>.json   what a run measured, and what it was made with
<method>-<seed>/       what its method wrote: a pool, of a method that has one
<method>-<seed>.begun.json   of a run that has begun and not ended: what it is made with
files.json             hashes of the images' files, by path, size and time of change
comparison.json, .md   the table
search.json, search/   learning rates that were tried on held-out training images, and the runs
earlier/               runs that were made with something else: nothing is overwritten
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.data.files import FileHashes
from intarsia.errors import InputError
from intarsia.store.files import read_json, reading, write_json, writing
from intarsia.store.index import INDEX
from intarsia.study.bench import Bench, difference
from intarsia.study.methods import METHODS

BENCH, FILES, TABLE, TEXT, EARLIER = "bench.json", "files.json", "comparison.json", "comparison.md", "earlier"
SEARCH, BEGUN = "search", ".begun"


@dataclass(frozen=True)
class Folder:
    """Runs that are kept.

    Args:
        path: where.
        say: told, in one line, what differs where a run is not taken for the one asked for.
    """

    path: Path
    say: Callable[[str], None]

    def check(self, bench: Bench, *, again: bool) -> None:
        """Refuse a folder that is not this comparison's; nothing is written.

        Args:
            bench: what is to be compared.
            again: another comparison may be there: it will be set aside.

        Raises:
            InputError: a pool is there, or another comparison; what differs, and what to do.
        """
        if (self.path / INDEX).exists():
            raise InputError(f"{self.path} holds a pool: name another folder for the comparison with --out")
        before = self._bench()
        if before is not None and not again and (found := difference(before, bench.budget())):
            raise InputError(
                f"{self.path} holds another comparison: its {found}. Name another folder with --out, or set that one "
                "aside with --again"
            )

    def claim(self, bench: Bench, *, again: bool) -> None:
        """Make the folder this comparison's; with ``again`` what is there is set aside first."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if again:
            self._set_aside(*sorted(path.name for path in self.path.iterdir() if _is_ours(path.stem)))
        write_json(bench.budget(), self.path / BENCH)

    def hashes(self) -> FileHashes:
        """Hashes of files that are known; those of a damaged list are taken again."""
        with suppress(InputError, TypeError, ValueError):
            return FileHashes(read_json(self.path / FILES))
        return FileHashes()

    def keep_hashes(self, files: FileHashes) -> None:
        """Keep them for the next time."""
        if record := files.record():
            write_json(record, self.path / FILES)

    def find(self, name: str, seed: int, settings: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a run that was made with the same settings, code, images, weights, machine; else None."""
        path = self.path / f"{name}-{seed}.json"
        if not path.is_file():
            return None
        record = read_json(path)
        with reading(path):
            before = _deciding(record["settings"], record.get("made", {}))
        found = difference(before, _deciding(settings, made))
        if found:
            self.say(f"{name}, seed {seed}: {found}: made again, the earlier run goes to {self.path / EARLIER}")
        return None if found else record

    def make_room(self, name: str, seed: int, settings: Mapping[str, Any], made: Mapping[str, Any]) -> Path:
        """Set an earlier run aside.

        Returns:
            The folder for what the method writes. What the same run, with the same settings, code, images, weights and
            machine, wrote there before it was stopped is still there; what another one wrote is not.
        """
        self._set_aside(f"{name}-{seed}.json", f"{name}-{seed}")
        into, begun = self.path / f"{name}-{seed}", self._begun(name, seed)
        now, before = _deciding(settings, made), None
        with suppress(InputError):
            before = read_json(begun)
        if into.exists() and (found := difference(before, now)):
            self.say(f"{name}, seed {seed}: {found}: what was learned of it before it was stopped is learned anew")
            with writing(into):
                shutil.rmtree(into)
        write_json(now, begun)
        return into

    def keep(self, record: Mapping[str, Any]) -> None:
        """A run's record, in its place."""
        write_json(record, self.path / f"{record['method']}-{record['seed']}.json")
        self._begun(record["method"], record["seed"]).unlink(missing_ok=True)

    def _begun(self, name: str, seed: int) -> Path:
        return self.path / f"{name}-{seed}{BEGUN}.json"

    def _bench(self) -> dict[str, Any] | None:
        """What the folder's runs compare, if there are some."""
        for name in (BENCH, TABLE):
            path = self.path / name
            if path.is_file():
                record = read_json(path)
                with reading(path):
                    return Bench.from_record({**record.get("bench", record)}).budget()
        return None

    def _set_aside(self, *names: str) -> None:
        there = [self.path / name for name in names if (self.path / name).exists()]
        if not any(path.is_file() for path in there):
            return  # a run has not ended: see ``make_room``
        number = 1
        while (target := self.path / EARLIER / str(number)).exists():
            number += 1
        with writing(target):
            target.mkdir(parents=True)
            for path in there:
                path.rename(target / path.name)


def _deciding(settings: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about a run's numbers: what of the bench does is among its own settings and what it is made with."""
    return {"settings": {**settings, "bench": None}, "made with": made}


def _is_ours(name: str) -> bool:
    """A comparison writes files and folders of that name, but for the hashes of files."""
    method, _, seed = name.removesuffix(BEGUN).rpartition("-")
    return name in (Path(BENCH).stem, Path(TABLE).stem, SEARCH) or (method in METHODS and seed.isdecimal())
