"""What a person sees: progress bars on standard error, tables on standard output."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import rich.progress
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from intarsia.progress import Progress

OUT = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


ERR = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


OFTEN = 10.0
"""Seconds between two lines of a long phase."""
SHORT = 24
"""A number or a name of at most so many letters is not broken, whatever the width."""


FOLDED = 12
"""Letters that a column of longer words has at least."""


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
        self._bars.update(self._phase, description=phase, completed=done, total=total)
        task, _, what = phase.rpartition(": ")
        if self._stream is not None and what == "training" and task in self._tasks:
            self._bars.update(self._stream, completed=self._tasks.index(task) + done / total)


class _Lines:
    """Where no bar can be drawn: a line for every phase that ends, and one now and then in a long one."""

    def __init__(self) -> None:
        self._name, self._began, self._told = "", 0.0, 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now, seen = time.monotonic(), phase == self._name
        if not seen:
            self._name, self._began, self._told = phase, self._told or now, now
        if done < total and now - self._told < OFTEN:
            return
        # what is heard of only at its end may have run beside other phases: since when is not known
        ended = f"{now - self._began:.1f} s" if seen or total > 1 else "done"
        took = ended if done == total else f"{done} of {total}"
        ERR.print(f"{phase}: {took}")
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
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with rich.progress.Progress(*columns, TimeRemainingColumn(), console=ERR, transient=True) as bars:
        yield _Bars(bars, tasks)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print a table: text to the left, numbers to the right (floats with one decimal, None as a dash).

    Names stand as they are, whatever signs they have. A number is never broken: where a terminal is too narrow for the
    table, a row is printed as lines of its own.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [_width(column, [row[i] for row in cells]) for i, column in enumerate(columns)]
    needed = sum(widths) + 2 * len(columns)
    if title:
        OUT.print(Text(title, style="italic"), soft_wrap=False)
    if needed > OUT.width and OUT.is_terminal:
        for row in cells:
            OUT.print()
            facts(dict(zip(columns, row, strict=True)))
    else:
        grid = Table(
            box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), width=needed if needed > OUT.width else None
        )
        for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
            words = i == 0 or any(row[i][:1].isalpha() for row in cells)
            justify = "left" if words else "right"
            grid.add_column(Text(column), justify=justify, overflow="fold", min_width=width)
        for row in cells:
            grid.add_row(*map(Text, row))
        OUT.print(grid, soft_wrap=False, crop=False)
    if note:
        OUT.print(Text(note, style="dim italic"), soft_wrap=False)


def facts(values: Mapping[str, object]) -> None:
    """Print name: value lines."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        OUT.print(f"{name:<{width}}  {_cell(value)}")


def _width(column: str, texts: Sequence[str]) -> int:
    """Letters that a column needs so that no number and no short name is broken."""
    words = [max(map(cell_len, text.split()), default=0) for text in (column, *texts)]
    whole = [cell_len(text) for text in texts if cell_len(text) <= SHORT]
    return max([word if word <= SHORT else FOLDED for word in words] + whole)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)
