"""What a person sees: progress bars on standard error, tables on standard output."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import rich.progress
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from intarsia.progress import Progress

OUT = Console(highlight=False, soft_wrap=True)


ERR = Console(stderr=True, highlight=False, soft_wrap=True)


OFTEN = 10.0
"""Seconds between two lines of a long phase."""
SHORT = 24
"""Names of rows of at most so many letters stay in one line, whatever the width."""


class _Bars:
    """Bars on a terminal: the tasks of a stream where there are some, and the phase that runs."""

    def __init__(self, bars: rich.progress.Progress, tasks: Sequence[str]) -> None:
        self._bars, self._tasks = bars, list(tasks)
        self._stream = bars.add_task("tasks", total=len(tasks)) if tasks else None
        self._phase = bars.add_task("...", total=None)
        self._name = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._name:
            self._bars.reset(self._phase)
            self._name = phase
        self._bars.update(self._phase, description=escape(phase), completed=done, total=total)
        task, _, what = phase.rpartition(": ")
        if self._stream is not None and what == "training" and task in self._tasks:
            self._bars.update(self._stream, completed=self._tasks.index(task) + done / total)


class _Lines:
    """Where no bar can be drawn: a line for every phase that ends, and one now and then in a long one."""

    def __init__(self) -> None:
        self._name, self._began, self._told = "", 0.0, 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self._name:
            self._name, self._began, self._told = phase, self._told or now, now
        if done < total and now - self._told < OFTEN:
            return
        took = f"{now - self._began:.1f} s" if done == total else f"{done} of {total}"
        ERR.print(f"{phase}: {took}", markup=False)
        self._told = now


@contextmanager
def shown(tasks: Sequence[str] = ()) -> Iterator[Progress]:
    """Show on standard error how far the work is while the block runs: bars on a terminal, else lines.

    Args:
        tasks: names of the tasks that are learned, for a bar of their own.
    """
    if not ERR.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with rich.progress.Progress(*columns, TimeRemainingColumn(), console=ERR, transient=True) as bars:
        yield _Bars(bars, tasks)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print a table; the first column is text, the others are numbers (floats with one decimal, None as a dash)."""
    grid = Table(
        title=title,
        title_justify="left",
        caption=note or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    longest = max((len(str(row[0])) for row in rows), default=0)
    for i, column in enumerate(columns):
        whole = i == 0 and longest <= SHORT
        grid.add_column(column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=whole)
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    OUT.print(grid)


def facts(values: Mapping[str, object]) -> None:
    """Print name: value lines."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        OUT.print(f"{name:<{width}}  {_cell(value)}", markup=False)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)
