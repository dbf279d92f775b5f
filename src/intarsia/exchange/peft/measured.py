"""A module around a task vector that was trained elsewhere: all else is measured on the task's images.

The steps are those of a task that is learned (``training.task``) but for the fifth: no weight is trained. The head is
fitted to the features of the module alone, from its reference head on, as fine-tuning would end.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.lora import LoRA
from intarsia.backbones.backbone import Backbone
from intarsia.class_stats.drift import fit_drift
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.exchange.peft.inward import Adaptation, base_of, fitted, read_adapter
from intarsia.heads.pretraining import pretune
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.regularizers.records import build_regularizer, regularizer_record
from intarsia.store.card import Card, Influence
from intarsia.store.lock import one_writer
from intarsia.store.module import Module
from intarsia.task_vector import TaskVector
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.recommended import resolve
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState, PreparedTask
from intarsia.training.steps import features_before, features_in_means, mean_feature, prototypes_of
from intarsia.training.task import prepare


def import_peft(
    folder: str | Path,
    stream: TaskStream,
    *,
    out: str | Path,
    backbone: Backbone | None = None,
    add: bool = False,
    progress: Progress = silent,
) -> Pool:
    """Make a LoRA that PEFT wrote a module of a pool.

    Args:
        folder: of the adapter.
        stream: of one task, of the classes that the adapter was trained on: its images are what is measured.
        out: the pool's folder, new or empty; with ``add`` an existing pool.
        backbone: what the adapter was trained on; if None, as the pool or the adapter says.
        add: add the module to the pool in ``out``.
        progress: told how far the work is.

    Returns:
        The pool, on disk.

    Raises:
        InputError: the adapter is no plain LoRA, or does not fit the backbone; the pool has such a task or one of its
            classes, or a run on it is not finished; the folder is in use, or an image cannot be read. Nothing was
            written.
        DivergenceError: features or Fisher are not finite; likewise.

    Example:
        >>> pool = import_peft("their-lora", TaskStream.load("folder:photos"), out="runs/theirs")
    """
    if len(stream) != 1:
        raise InputError(
            f"{stream.name} has {len(stream)} tasks, expected one, of all classes that the adapter knows: choose it "
            "with --only, or name --tasks 1"
        )
    path, found = Path(out), read_adapter(folder)
    theta0 = backbone if backbone is not None or add else Backbone.load(base_of(found, folder))
    pool = _opened(path, theta0, found, add)
    parameters = fitted(found, pool.backbone, pool.adapter, f"adapter {folder}")
    about = {"from": "peft", "base": found.base, **found.about, "left_out": list(found.saved)}
    (task,) = stream
    pool.check_new(task.name, task.classes)
    with one_writer(path) as run:
        Checkpoint(run).refuse()
        pool = _opened(path, pool.backbone, found, add)
        stream.decode(pool.backbone.preprocessing, progress)
        settings, state = Settings.from_record(pool.index.settings), LearnerState.of(pool)
        running = pool.fisher()
        prepared, state = prepare(pool.backbone, task, state, settings, progress)
        module = measured(pool, prepared, state, settings, parameters, stream.source(task.name), about, progress)
        assert state.reference is not None
        pool.log({"task": task.name, "at": datetime.now(UTC).isoformat(timespec="seconds"), "imported": about})
        pool.add(module, prepared.fisher if running is None else running + prepared.fisher, state.reference)
    return pool


def _opened(path: Path, backbone: Backbone | None, found: Adaptation, add: bool) -> Pool:
    """The pool to write to, as it is now; a new one has the settings that are recommended."""
    if add:
        return Pool.open(path, backbone)
    assert backbone is not None
    chosen = resolve(adapter="lora", rank=found.rank, sizes=backbone.sizes)
    regularizer = build_regularizer(chosen.method, chosen.strength)
    record = {**regularizer_record(regularizer), **chosen.settings.record()}
    return Pool.create(path, backbone, LoRA(found.rank), record)


def measured(
    pool: Pool,
    prepared: PreparedTask,
    state: LearnerState,
    settings: Settings,
    parameters: Mapping[str, Tensor],
    source: dict[str, Any],
    about: Mapping[str, Any],
    progress: Progress = silent,
) -> Module:
    """The module of a task vector: head, drift and prototypes, measured on the images of a prepared task."""
    task, number, backbone = prepared.task, prepared.number, pool.backbone
    assert state.reference is not None
    with backbone.attach(pool.adapter) as attachment:

        def features(total: TaskVector | None, tasks: int) -> list[Tensor]:
            return features_in_means(backbone, task, attachment, total, tasks, settings, progress)

        sums = state.earlier, state.total
        earlier, before = features_before(backbone, task, attachment, sums, number, settings, progress)
        put(attachment, parameters)
        alone = features(None, 1)[0]
        after = [alone] if number == 1 else features(state.total, number)
        norm = float(attachment.vector().norm())
    shift = mean_feature(alone - prepared.features, task, settings) * settings.center_features
    reference = state.reference[prepared.rows]
    head = pretune(
        reference,
        alone - shift,
        task.train.labels,
        epochs=settings.pretune_epochs,
        lr=settings.pretune_lr,
        batch_size=settings.batch_size,
        generator=Seeds(settings.seed, number).generator("heads"),
    )
    others = state.tasks[: number - 1]
    card = Card(
        task=task.name,
        classes=task.classes,
        images=len(task.train),
        settings={**pool.index.settings, "method": "imported", "imported": dict(about)},
        stream=source,
        versions={name: version(name) for name in ("intarsia", "torch", "timm")},
        influenced_by=Influence(statistics=others, prototypes=others),
        measures={
            "fisher_error": prepared.fisher.error,
            "losses": [],
            "relative_norm": norm / float(TaskVector(backbone.trainable).norm()),
        },
    )
    return Module(
        card,
        dict(parameters),
        head,
        reference,
        prepared.statistics,
        fit_drift(prepared.features, alone),
        shift,
        prototypes_of(earlier, before or [prepared.features], after, task, settings),
    )


def put(attachment: Attachment, parameters: Mapping[str, Tensor]) -> None:
    """Give an attachment parameters, of any rank."""
    for name, layer in attachment.layers.items():
        for key, value in layer.adapter_parameters.items():
            value.data = parameters[f"{name}.{key}"].to(value)
