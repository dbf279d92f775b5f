"""What ``compare`` can run: ITA and IEL as the tool learns them, and the methods of others, each with its settings."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

from intarsia.adapters.records import build_adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines import derpp, ewc, finetune, frozen, joint, l2, seed, tmc
from intarsia.baselines.modular import stages
from intarsia.baselines.stage import Stage
from intarsia.data.stream import TaskStream
from intarsia.progress import Progress
from intarsia.regularizers.records import build_regularizer
from intarsia.training.learner import learn
from intarsia.training.recommended import recommended
from intarsia.training.settings import Settings

Learn = Callable[[Backbone, TaskStream, Settings, Progress, Path], Iterator[Stage]]


@dataclass(frozen=True)
class Method:
    """A way to learn a stream.

    Args:
        about: one line.
        learn: backbone, stream, training, progress, folder of its own -> the method after each task.
        training: its own settings; epochs, batch and seed are the comparison's.
        options: what else it is set to.
    """

    about: str
    learn: Learn
    training: Settings
    options: Mapping[str, float]


def _cell(method: str, kind: str) -> Method:
    """ITA or IEL with an adapter, as the tool would learn it."""
    strength, training = recommended(method, kind)
    adapter, regularizer = build_adapter(kind), build_regularizer(method, strength)

    def run(b: Backbone, s: TaskStream, t: Settings, p: Progress, folder: Path) -> Iterator[Stage]:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that did not end
        pool = learn(b, s, out=folder, adapter=adapter, regularizer=regularizer, training=t, progress=p)
        yield from stages(pool)

    return Method(f"{method.upper()}, {adapter}: modules, their mean", run, training, {"strength": strength})


def _baseline(about: str, learn: Callable[..., Iterator[Stage]], lr: float, **options: float) -> Method:
    """A baseline; options that are not named are its own, and recorded too."""
    own = {name: p.default for name, p in signature(learn).parameters.items() if isinstance(p.default, int | float)}
    options = {**own, **options}

    def run(b: Backbone, s: TaskStream, t: Settings, p: Progress, folder: Path) -> Iterator[Stage]:
        return learn(b, s, training=t, progress=p, **options)

    return Method(about, run, Settings(lr=lr), options)


METHODS: Mapping[str, Method] = {
    "frozen": _baseline("no training: linear discriminant of theta0's features", frozen.learn, 0.0),
    "joint": _baseline("LoRA, all images at once", joint.learn, 3e-3),
    "finetune": _baseline("all tuned weights, task after task", finetune.learn, 3e-5),
    "ewc": _baseline("all tuned weights, held by the Fisher of earlier tasks", ewc.learn, 1e-4, strength=10.0),
    "derpp": _baseline("all tuned weights, with 500 old images", derpp.learn, 1e-3, b=2.0),
    "seed": _baseline("five experts of 64 features, Gaussians of the classes", seed.learn, 1e-3),
    "tmc": _baseline("tangent models, their mean", tmc.learn, 1e-4),
    "l2": _baseline("ITA with LoRA and a plain L2", l2.learn, 3e-3),
    "ita": _cell("ita", "lora"),
    "ita-full": _cell("ita", "full"),
    "ita-ia3": _cell("ita", "ia3"),
    "iel": _cell("iel", "lora"),
    "iel-full": _cell("iel", "full"),
    "iel-ia3": _cell("iel", "ia3"),
}


STANDARD = ("frozen", "joint", "finetune", "ewc", "l2", "derpp", "tmc", "seed", "ita", "iel")
"""What is compared if nothing is named."""
