"""How far the work is, how long its phases took, and what comes of it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Progress(Protocol):
    """Told how far the work is: a phase in words, units done, units in all. A phase ends with done = total."""

    def __call__(self, phase: str, done: int, total: int, /) -> None:
        """Report."""
        ...


def silent(phase: str, done: int, total: int) -> None:
    """Report nothing."""


class Tracker(Protocol):
    """Told what a run is made with, and what comes of it; it neither fails nor waits (see ``tracking``)."""

    def began(self, record: Mapping[str, Any], /) -> None:
        """What the run was asked for, as JSON; before its first task."""
        ...

    def learned(self, task: str, number: int, losses: Sequence[float], seconds: Mapping[str, float], /) -> None:
        """A task is in the pool: its place there from 1, its mean loss by epoch, and seconds by phase."""
        ...


class Untracked:
    """Tells nobody."""

    def began(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def learned(self, task: str, number: int, losses: Sequence[float], seconds: Mapping[str, float]) -> None:
        """Nothing."""


def within(progress: Progress, of: str) -> Progress:
    """The progress of a part: its phases are told as ``<of>: <phase>``."""

    def told(phase: str, done: int, total: int) -> None:
        progress(f"{of}: {phase}", done, total)

    return told


class Timings:
    """A stopwatch: seconds by phase, in the order they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What ran since the last lap was this phase, or more of it."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def so_far(self, phase: str) -> float:
        """Seconds of a phase that is running, with what it had before."""
        return self.seconds.get(phase, 0.0) + time.perf_counter() - self._last
