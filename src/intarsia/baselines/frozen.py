"""No training at all: theta0's features and Fisher's linear discriminant of the class statistics."""

from collections.abc import Iterator

from intarsia.adapters.full import Full
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.setting import plain_run
from intarsia.baselines.stage import Stage, classifier
from intarsia.class_stats.gaussians import Gaussians
from intarsia.data.stream import TaskStream
from intarsia.heads.discriminant import discriminant
from intarsia.progress import Progress, Timings, silent
from intarsia.training.settings import Settings


def learn(
    backbone: Backbone, stream: TaskStream, *, training: Settings | None = None, progress: Progress = silent
) -> Iterator[Stage]:
    """Take the classes' means and their common covariance, task by task.

    Args:
        backbone: theta0.
        stream: the tasks.
        training: nothing of it matters here.
        progress: told how far the work is.

    Yields:
        The method after each task.
    """
    run = plain_run(backbone, stream, Full(), training, progress)
    seen: Gaussians | None = None
    classes: dict[str, tuple[str, ...]] = {}
    for task in stream:
        timings, classes = Timings(), {**classes, task.name: task.classes}
        features = run.features(task.name, task.train.tensor(backbone.preprocessing))
        own = Gaussians.of(features, task.train.labels, len(task.classes))
        seen = own if seen is None else Gaussians.join([seen, own])
        head = discriminant(seen)
        timings.lap("set-up")
        model = classifier(backbone, backbone.model, head, classes)
        yield Stage(model, timings.seconds["set-up"], 0.0, seen.centres.numel() + seen.scatter.numel())
