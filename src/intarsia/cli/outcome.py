"""What ``learn`` says at its end: every task beside the frozen backbone, what to try next, and what went wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from intarsia.console import OUT, shown, table
from intarsia.data.stream import Task, TaskStream
from intarsia.evaluation.answers import Answers
from intarsia.evaluation.metrics import Evaluation, evaluate, own_heads_accuracy, recorded_stream
from intarsia.merging.model import ComposedModel
from intarsia.pool import Pool
from intarsia.progress import Progress, within
from intarsia.tracking.reports import Reports

UNEVEN = 4
"""Times as many training images in one class as in another from which on they are called uneven."""


@dataclass(frozen=True)
class Tried:
    """A composition that one would try next, on the newest task.

    Args:
        task: the newest.
        specialist: accuracy on it, in percent, of its own module among its own classes.
        others_before: accuracy on the other tasks with all modules.
        others_after: the same with the newest task unlearned.
    """

    task: str
    specialist: float
    others_before: float
    others_after: float


def outcome(pool: Pool, stream: TaskStream, *, as_json: bool, reports: Reports | None = None) -> dict[str, Any]:
    """Measure the mean of all modules, one specialist and one task unlearned, and print it.

    Args:
        pool: that has learned.
        stream: what it has just learned.
        as_json: print nothing.
        reports: told the accuracies; then the models after each task are measured too.

    Returns:
        As JSON.
    """
    whole = tuple(task.name for task in stream) == pool.tasks
    stream = stream if whole else recorded_stream(pool)
    mean, answers = pool.mean(), Answers()  # the heads as fine-tuned are on the same features
    with shown() as progress:
        told, history = within(progress, "all modules"), reports is not None
        found = evaluate(mean, stream, history=history, progress=told, answers=answers)
        frozen = evaluate(pool.frozen(pool.tasks), stream, history=False, progress=within(progress, "frozen backbone"))
        tried = _tried(pool, stream, found, progress) if len(pool.tasks) > 1 else None
        as_the_paper = pool.index.settings["protocol"] == "paper"
        own = own_heads_accuracy(pool, stream, progress, answers) if as_the_paper else None
    if reports is not None:
        reports.evaluated(found)
    balanced = all(pool.card(task).settings.get("class_balanced", False) for task in pool.tasks)
    notes = warnings(stream, found, frozen, balanced=balanced)
    if not as_json:
        _print(pool, stream, found, frozen, tried, notes)
        if own is not None:
            OUT.print(f"under the paper's own heads, as they were fine-tuned: {own:.1f} % of all test images")
    record = {
        "pool": str(pool.path),
        "recipe": mean.recipe,
        **found.record(),
        "frozen_head_accuracy": frozen.final_accuracy,
        "frozen_head_task_il_accuracy": frozen.task_il_accuracy,
        "notes": list(notes),
        **({} if own is None else {"own_heads_accuracy": own}),
    }
    if tried is None:
        return record
    unlearned = {"task": tried.task, "control_before": tried.others_before, "control_after": tried.others_after}
    return record | {
        "specialist": {"task": tried.task, "accuracy": tried.specialist},
        "unlearned": unlearned,
    }


def _tried(pool: Pool, stream: TaskStream, found: Evaluation, progress: Progress) -> Tried:
    newest = pool.tasks[-1]

    def accuracy(model: ComposedModel, name: str) -> float:
        return evaluate(model, stream, history=False, progress=within(progress, name)).final_accuracy

    counts = {task.name: len(task.test) for task in stream}
    others = [task for task in pool.tasks if task != newest]
    before = sum(found.per_task[t] * counts[t] for t in others) / sum(counts[t] for t in others)
    expert = accuracy(pool.specialize([newest]), f"specialist in {newest}")
    return Tried(newest, expert, before, accuracy(pool.unlearn(newest), f"{newest} unlearned"))


def warnings(stream: TaskStream, found: Evaluation, frozen: Evaluation, *, balanced: bool = False) -> list[str]:
    """What a user should know of the result, and what to try, a line each.

    Args:
        stream: what was measured.
        found: all modules.
        frozen: the backbone without them.
        balanced: classes were balanced already.
    """
    lines = []
    counts = {kind: n for task in stream for kind, n in zip(task.classes, _counts(task), strict=True)}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= UNEVEN * counts[least]:
        remedy = "" if balanced else ", or learn with --training.class-balanced"
        lines.append(
            f"uneven: class {most!r} has {counts[most]} training images, {least!r} has {counts[least]}; classes with "
            f"few are seldom answered. Add images of them{remedy}"
        )
    lost = frozen.final_accuracy - found.final_accuracy
    if lost > 0:
        lines.append(
            f"below the frozen backbone by {lost:.1f} points: training took away more than it gave. Try a lower --lr, "
            "fewer --epochs, a larger --strength, or more images per class"
        )
    return lines


def _counts(task: Task) -> Sequence[int]:
    """Training images of each of a task's classes."""
    return torch.bincount(task.train.labels, minlength=len(task.classes)).tolist()


def _print(
    pool: Pool, stream: TaskStream, found: Evaluation, frozen: Evaluation, tried: Tried | None, notes: Sequence[str]
) -> None:
    rows: list[tuple[object, ...]] = [
        (task, len(stream[task].classes), accuracy, frozen.per_task[task], accuracy - frozen.per_task[task])
        for task, accuracy in found.per_task.items()
    ]
    gain = found.final_accuracy - frozen.final_accuracy
    classes = sum(len(stream[task].classes) for task in found.tasks)
    rows.append(("all test images", classes, found.final_accuracy, frozen.final_accuracy, gain))
    note = (
        "Accuracy in percent, the classes of all tasks competing. Learned: the mean of all modules; frozen: the "
        "backbone untouched, with the best head it can have."
    )
    table(f"{pool.path}: what was learned", ("task", "classes", "learned", "frozen", "gain"), rows, note)

    def say(line: str) -> None:
        OUT.print(line)

    say(f"final accuracy (class-incremental): {found.final_accuracy:.1f}, frozen backbone {frozen.final_accuracy:.1f}")
    if tried is not None:
        task = tried.task
        say(
            f"unlearned {task}: {tried.others_after:.1f} on the other tasks, {tried.others_before:.1f} with it "
            f"(intarsia unlearn {pool.path} {_quoted(task)})"
        )
        say(
            f"specialist in {task}: {tried.specialist:.1f} among its own {len(stream[task].classes)} classes "
            f"(intarsia evaluate {pool.path} --keep {_quoted(task)})"
        )
    for line in notes:
        say(line)


def _quoted(name: str) -> str:
    """As a shell takes it."""
    from shlex import quote

    return quote(name)
