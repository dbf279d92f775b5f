"""What a person sees: progress bars on standard error, tables on standard output."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

OUT = Console(highlight=False, soft_wrap=True)


ERR = Console(stderr=True, highlight=False, soft_wrap=True)


SHORT = 24
"""Names of rows of at most so many letters stay in one line, whatever the width."""


class LearningBars:
    """Two bars: tasks of the stream, and the current phase of the current task.

    Args:
        bars: where they are drawn.
        tasks: names of the tasks to learn.
    """

    def __init__(self, bars: Progress, tasks: Sequence[str]) -> None:
        self._bars = bars
        self._stream = bars.add_task("tasks", total=len(tasks))
        self._phase: TaskID = bars.add_task("...", total=None)
        self._tasks = [*tasks]

    def __call__(self, task: str, phase: str, done: int, total: int) -> None:
        """Draw; a finished training moves the bar of the stream."""
        self._bars.update(self._phase, description=f"{task}: {phase}", completed=done, total=total)
        if phase == "training" and task in self._tasks:
            self._bars.update(self._stream, completed=self._tasks.index(task) + (done == total))


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars while the block runs; drawn only where standard error is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as progress:
        yield progress


@contextmanager
def bar(description: str) -> Iterator["_Bar"]:
    """One bar; the value is a function of (done, total)."""
    with bars() as progress:
        yield _Bar(progress, progress.add_task(description, total=None))


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def __call__(self, done: int, total: int) -> None:
        self._bars.update(self._task, completed=done, total=total)


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
