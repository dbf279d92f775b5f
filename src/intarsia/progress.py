"""How far the work is, and how long its phases took."""

import time
from typing import Protocol


class Progress(Protocol):
    """Told how far a task is: a phase's name, units done, units in all."""

    def __call__(self, task: str, phase: str, done: int, total: int) -> None:
        """Report."""
        ...


def silent(task: str, phase: str, done: int, total: int) -> None:
    """Report nothing."""


class Laps:
    """A stopwatch: seconds by phase, in the order they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What ran since the last lap was this phase, or more of it."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
