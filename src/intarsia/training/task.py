"""One task in six steps, as section 3 of docs/method.md has them; state goes in, a new state comes out.

1 features at theta0 · 2 class statistics · 3 reference heads · 4 Fisher at theta0 · 5 fine-tuning · 6 module.
"""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from intarsia.backbones.backbone import Backbone
from intarsia.curvature.protocol import Curvature
from intarsia.data.stream import Task
from intarsia.machine import give_back_memory, machine, peak_memory
from intarsia.progress import Progress, Timings, silent
from intarsia.regularizers.records import regularizer_record
from intarsia.store.card import Card, Influence
from intarsia.store.module import Module
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.fine_tuning import Configuration, FineTunedTask, fine_tune
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.state import LearnedTask, LearnerState, PreparedTask
from intarsia.training.steps import class_statistics, curvature_at_theta0, features_of, reference_heads


def prepare(
    backbone: Backbone, task: Task, state: LearnerState, settings: Settings, progress: Progress = silent
) -> tuple[PreparedTask, LearnerState]:
    """Steps 1 to 4; the new state knows the task's Fisher, classes and heads.

    Raises:
        DivergenceError: features or Fisher are not finite.
    """
    timings, number = Timings(), len(state.tasks) + 1
    seeds = Seeds(settings.seed, number)

    features = features_of(backbone, task, settings.precision, progress)
    timings.lap("features")
    statistics = class_statistics(features, task, settings, seeds)
    timings.lap("statistics")
    progress(f"{task.name}: class statistics", 1, 1)
    seen = state.seen.with_task(statistics)
    reference = reference_heads(features, task, state.reference, seen, settings, seeds)
    give_back_memory()  # of the features drawn for all classes: it would stay, unused, beside what the passes need
    timings.lap("heads")
    progress(f"{task.name}: reference heads", 1, 1)
    fisher = curvature_at_theta0(backbone, task, reference, state.fisher, settings, seeds, progress)
    timings.lap("fisher")

    rows = slice(len(reference) - len(task.classes), len(reference))
    prepared = PreparedTask(task, number, rows, features, statistics, fisher, timings.seconds)
    return prepared, state.with_task(task.name, seen, reference, fisher)


def finish(
    backbone: Backbone,
    prepared: PreparedTask,
    state: LearnerState,
    others: Curvature | None,
    configuration: Configuration,
    *,
    source: dict[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> tuple[LearnedTask, LearnerState]:
    """Steps 5 and 6; the new state knows the task's vector.

    Args:
        backbone: theta0.
        prepared: the task after steps 1 to 4.
        state: what is known of all tasks.
        others: the Fisher of the other tasks known, for ITA.
        configuration: how it is fine-tuned.
        source: where its images come from, for the card.
        checkpoint: where its training is kept at every epoch boundary; nowhere if None.
        progress: told how far the work is.

    Raises:
        DivergenceError: the loss or a weight is not finite, or the regularizer's explicit step overshoots.
    """
    fine_tuned = fine_tune(backbone, prepared, state, others, configuration, checkpoint=checkpoint, progress=progress)
    module = _module(prepared, state, fine_tuned, configuration, source or {})

    assert state.reference is not None
    log = _log(prepared, fine_tuned, backbone)
    learned = LearnedTask(module, prepared.fisher, state.reference[: prepared.rows.stop], log)
    return learned, state.with_vector(fine_tuned.vector)


def _module(
    prepared: PreparedTask,
    state: LearnerState,
    fine_tuned: FineTunedTask,
    configuration: Configuration,
    source: dict[str, Any],
) -> Module:
    """Step 6: what is kept of the task."""
    assert state.reference is not None
    task = prepared.task
    others = tuple(t for t in state.tasks if t != task.name)
    earlier = state.tasks[: prepared.number - 1]
    through = earlier if configuration.regularizer.through_mean else ()
    measured = (*state.lost, *others)
    if configuration.settings.curvature_of == "reference" and not state.lost:
        measured = tuple(t for t in state.tasks[:1] if t != task.name)
    card = Card(
        task=task.name,
        classes=task.classes,
        images=len(task.train),
        settings={**regularizer_record(configuration.regularizer), **configuration.settings.record()},
        stream=source,
        versions={name: version(name) for name in ("intarsia", "torch", "timm")},
        influenced_by=Influence(measured, others, through, earlier),
        measures={"fisher_error": prepared.fisher.error, **fine_tuned.measures},
    )
    reference = state.reference[prepared.rows]
    return Module(
        card,
        fine_tuned.adapter_parameters,
        fine_tuned.head,
        reference,
        prepared.statistics,
        fine_tuned.drift,
        fine_tuned.shift,
        fine_tuned.prototypes,
    )


def _log(prepared: PreparedTask, fine_tuned: FineTunedTask, backbone: Backbone) -> dict[str, Any]:
    """When, how long, on what: not part of what a pool is."""
    seconds = {**prepared.seconds, **fine_tuned.seconds}
    return {
        "task": prepared.task.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "set_up_seconds": round(sum(prepared.seconds.values()), 3),
        "training_seconds": round(sum(fine_tuned.seconds.values()), 3),
        "seconds": {phase: round(s, 3) for phase, s in seconds.items()},
        "peak_memory_mib": peak_memory(),
        "machine": machine(backbone.device),
    }
