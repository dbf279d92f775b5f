"""Runs of a comparison in the tests' own process, where a process of its own for each is not the point."""

from pathlib import Path
from typing import Any

import pytest

from intarsia.progress import silent
from intarsia.study.bench import Bench
from intarsia.study.runs import attempt


class InThisProcess:
    """In place of ``Processes``."""

    def __init__(self, bars: bool) -> None:
        pass

    def run(self, bench: Bench, name: str, seed: int, into: Path, *, edits: bool) -> dict[str, Any]:
        return attempt(bench, name, seed, into, silent, edits=edits)

    def stop(self) -> None:
        pass


def use(patch: pytest.MonkeyPatch) -> None:
    """Let comparisons make their runs here."""
    patch.setattr("intarsia.study.compare.Processes", InThisProcess)
