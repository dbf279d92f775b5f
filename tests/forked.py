"""The command line in a process of its own that need not load torch first: a copy of one in which it is loaded."""

import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

LOADED = (
    *("cases", "timm"),  # ``cases`` has the guard that timm needs
    *(f"intarsia.cli.{name}" for name in ("main", "learn", "manage", "pool", "study")),
    *(f"intarsia.{name}" for name in ("evaluation.theorem", "report.page", "study.compare", "training.learner")),
)
"""Modules of the process that is copied."""


def intarsia(arguments: Iterable[object], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``intarsia <arguments>`` in such a process, in a folder, and wait for it."""
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("out", "err")]
        process = _context().Process(target=_run, args=(given, cwd or Path.cwd(), said))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(given, process.exitcode, *(path.read_text() for path in said))


@cache
def _context() -> ForkServerContext:
    context, path = multiprocessing.get_context("forkserver"), os.environ.get("PYTHONPATH")
    context.set_forkserver_preload(list(LOADED))
    here = os.pathsep.join([str(Path(__file__).parent), *([path] if path else [])])
    with patch.dict(os.environ, PYTHONPATH=here):  # where it looks for ``cases``
        forkserver.ensure_running()
    return context


def _run(arguments: list[str], cwd: Path, said: list[Path]) -> None:
    from intarsia.cli.main import main  # noqa: PLC0415  loaded before this process was made

    os.chdir(cwd)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    main(arguments)
