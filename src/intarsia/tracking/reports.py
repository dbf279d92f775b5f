"""What is reported of a run, and that no tracker is a run's concern: one that fails is left out, with a word."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from intarsia.errors import InputError, first_line, not_installed
from intarsia.evaluation.metrics import Evaluation
from intarsia.tracking.writers import TRACKERS, Axis, Value, Writer

LONGEST = 500
"""Letters of a parameter; MLflow takes 6000 and others take fewer."""


class Reports:
    """A run's reports: a ``progress.Tracker`` of any number of trackers.

    Args:
        writers: by the tracker's name.
        say: told of one that fails, once.
    """

    def __init__(self, writers: Mapping[str, Writer], say: Callable[[str], None]) -> None:
        self._writers = dict(writers)
        self._say = say

    def began(self, record: Mapping[str, Any]) -> None:
        """What the run was asked for: its parameters, those of groups as ``group.name``; no class by name."""
        about = record["stream"]
        load = {key: value for key, value in (about.get("load") or {}).items() if key != "split"}
        stream = {"name": about["name"], "augmentation": about["augmentation"], "load": load}
        values = dict(_flat({**record, "stream": stream}))
        self._each(lambda writer: writer.parameters(values))

    def learned(self, task: str, number: int, losses: Sequence[float], seconds: Mapping[str, float]) -> None:
        """A task is in the pool: ``loss/<task>`` by epoch, ``seconds/<phase>`` by task, each from 1."""
        for epoch, loss in enumerate(losses, 1):
            self._scalars({f"loss/{task}": loss}, "epoch", epoch)
        self._scalars({f"seconds/{phase}": value for phase, value in seconds.items()}, "task", number)

    def evaluated(self, found: Evaluation) -> None:
        """Percent: ``accuracy`` on all classes seen, ``task_accuracy/<task>``, both by task, and ``final_accuracy``."""
        first = len(found.tasks) - len(found.accuracy_matrix) + 1
        rows = zip(found.incremental_accuracy, found.accuracy_matrix, strict=True)
        for count, (overall, row) in enumerate(rows, first):
            each = {f"task_accuracy/{task}": value for task, value in zip(found.tasks, row, strict=False)}
            self._scalars({"accuracy": overall, **each}, "task", count)
        self._scalars({"final_accuracy": found.final_accuracy}, "task", len(found.tasks))

    def close(self, *, failed: bool = False) -> None:
        """Wait for what is on its way."""
        with redirect_stdout(sys.stderr):
            self._each(lambda writer: writer.close(failed=failed))

    def _scalars(self, values: Mapping[str, float], axis: Axis, step: int) -> None:
        plain = {_plain(name): float(value) for name, value in values.items()}
        self._each(lambda writer: writer.scalars(plain, axis, step))

    def _each(self, act: Callable[[Writer], None]) -> None:
        for name, writer in list(self._writers.items()):
            try:
                act(writer)
            except Exception as error:  # whatever its library raises
                del self._writers[name]
                self._say(
                    f"--report-to {name}: {first_line(error)}; the run goes on, and is not reported there any more"
                )


@contextmanager
def report_to(names: Sequence[str], folder: str | Path, *, say: Callable[[str], None] = print) -> Iterator[Reports]:
    """Report a run to trackers while the block runs.

    Args:
        names: of ``TRACKERS``: trackio, mlflow, wandb, tensorboard.
        folder: of the pool; the run has its name.
        say: told of a tracker that fails later on, once.

    Raises:
        InputError: there is no such tracker, its library is not installed, or it cannot be begun.

    Example:
        >>> with report_to(["tensorboard"], "runs/mine") as tracker:
        ...     pool = learn(theta0, stream, out="runs/mine", tracker=tracker)
        ...     tracker.evaluated(evaluate(pool.mean(), stream))
    """
    reports = Reports({}, say)
    try:
        for name in dict.fromkeys(names):
            reports._writers[name] = _begun(name, Path(folder).resolve())
        yield reports
    except BaseException:
        reports.close(failed=True)
        raise
    reports.close()


def _begun(name: str, folder: Path) -> Writer:
    if name not in TRACKERS:
        near = get_close_matches(name, TRACKERS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--report-to {name!r}: expected some of {', '.join(TRACKERS)}{hint}")
    try:
        with redirect_stdout(sys.stderr):  # what is printed is ours
            return TRACKERS[name](folder)
    except ImportError as error:
        raise not_installed(f"--report-to {name}", name, "track", error) from error
    except Exception as error:  # of its library, its server, its files
        raise InputError(
            f"--report-to {name}: it cannot be begun ({first_line(error)}): mend that, or leave it out; nothing was "
            "learned"
        ) from error


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Value]]:
    """A record as names and plain values; what is too long is cut."""
    for key, value in record.items():
        name = f"{before}{_plain(str(key))}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, bool | int | float) else _text(value)[:LONGEST]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(name: str) -> str:
    """A name with the signs that every tracker takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
