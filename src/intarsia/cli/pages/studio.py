"""``intarsia studio``."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intarsia.cli.flags import Inline, Json, Positional
from intarsia.cli.where import Where, is_model
from intarsia.errors import InputError
from intarsia.study.choice import Source

if TYPE_CHECKING:
    from gradio import Blocks

    from intarsia.data.stream import TaskStream
    from intarsia.pool import Pool


LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Studio:
    """Open a page in the browser: compose, try, unlearn and learn modules by hand, or look at a comparison."""

    what: Positional[Path]
    """Folder of the pool, or of the comparison."""
    port: int | None = None
    """Of the page's address; the first free one from 7860 if not given."""
    host: str = "127.0.0.1"
    """Whose requests are taken: this machine's alone. With 0.0.0.0, whoever reaches this machine can use the page."""
    share: Literal["no", "yes"] = "no"
    """yes: also lead a public address here, through gradio's servers. no: no request leaves this machine."""
    per_class: int | None = None
    """Test images of each class that every move is measured on; as many as take a third of a second if not given."""
    source: Source = field(default_factory=Source)
    where: Inline[Where] = field(default_factory=Where)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Open what is there, and answer until Ctrl-C."""
        from intarsia.exchange.extras import library
        from intarsia.store.index import INDEX

        if self.port is not None and not 1 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: expected 1 to 65535, or leave it out for the first that is free")
        compared = (self.what / "comparison.json").exists()
        if not compared and not (self.what / INDEX).exists():
            more = ": a composed model is fixed, name the pool" if is_model(self.what) else ""
            raise InputError(
                f"{self.what} holds neither a pool (intarsia learn) nor a comparison (intarsia compare){more}"
            )
        library("gradio", "studio", "the studio")
        self._comparison() if compared else self._pool()
        return {}

    def _comparison(self) -> None:
        if self.source.chooses or self.where != Where() or self.per_class is not None:
            raise InputError(
                f"{self.what} holds a comparison, all of it measured: --per-class, --backbone and the flags that "
                "choose images are for a pool"
            )
        from intarsia.studio.comparison import comparison

        with tempfile.TemporaryDirectory() as uploads:  # of which there are none
            self._answer(comparison(self.what), Path(uploads))

    def _answer(self, blocks: Blocks, uploads: Path) -> None:
        """Until Ctrl-C, which is the way to end it."""
        from intarsia.console import OUT
        from intarsia.studio.serve import serve

        address = serve(blocks, uploads, host=self.host, port=self.port, share=self.share == "yes")
        OUT.print(f"{address} shows {self.what}; Ctrl-C ends it")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            OUT.print("ended")
        finally:
            blocks.close(verbose=False)

    @property
    def is_private(self) -> bool:
        """Only who uses this machine reaches the page; folders of it may be named there."""
        return self.host in LOOPBACK and self.share == "no"

    def _pool(self) -> None:
        from intarsia.studio.learning.process import Learning
        from intarsia.studio.measures import one_thread
        from intarsia.studio.page import page
        from intarsia.studio.serve import tidy
        from intarsia.studio.session import Session

        pool = self.where.pool(self.what, self.device)
        threads = one_thread() if pool.backbone.device.type == "cpu" else 1
        session = Session(pool.path, pool.backbone, self._images, per_class=self.per_class, threads=threads)
        tidy(session.home)
        learning = Learning(session, self.where.backbone, folders=self.is_private)
        try:
            self._answer(page(session, learning), session.uploads)
        finally:
            learning.close()
            shutil.rmtree(session.uploads, ignore_errors=True)
            tidy(session.home)

    def _images(self, pool: Pool, tasks: Sequence[str]) -> TaskStream:
        if len(tasks) == len(pool.tasks):
            return self.where.stream(self.source, pool, tasks)
        return self.where.recorded({task: pool.card(task).stream for task in tasks}, self.source.cache)  # learned since
