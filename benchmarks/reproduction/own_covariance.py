"""How much of a class's own covariance its discriminant should have, and how many of its directions.

    python benchmarks/reproduction/own_covariance.py --streams chalk sketches --out own.jsonl
    python benchmarks/reproduction/own_covariance.py --streams hf:../shared/data/cifar100 --split-into 10
        --backbone "hf/../shared/data/dinov2-small-saliency?image-size=70" --max-per-class 60 --held-out 0.333
    python benchmarks/reproduction/own_covariance.py --seen drift-maps.pt

Features of the frozen backbone, or those of all modules' mean that ``drift_maps.py`` kept, class statistics carried
there. Measured on the held-out part of the training images.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from drift_maps import Seen, affine, features_of, seen_in

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.names import BUILTIN
from intarsia.class_stats import gaussians
from intarsia.class_stats.drift import fit_drift
from intarsia.class_stats.gaussians import Gaussians
from intarsia.data.stream import TaskStream
from intarsia.heads import discriminant
from intarsia.machine import code, machine

PARTS = (0.01, 0.02, 0.05, 0.1, 0.2)
RANKS = (8, 16, 32, 64)


@dataclass(frozen=True)
class OwnCovariance:
    """Which features."""

    streams: tuple[str, ...] = ()
    """As ``intarsia learn --data``: features of the frozen backbone."""
    seen: tuple[Path, ...] = ()
    """Files of ``drift_maps.py``: features of the mean of modules."""
    backbone: str = BUILTIN
    """As ``intarsia learn --backbone``."""
    split_into: int | None = None
    """Cut the classes into so many tasks."""
    max_per_class: int | None = None
    """Only the first so many images of each class."""
    held_out: float = 0.2
    """Part of the training images that is classified."""
    threads: int = 2
    """Threads of torch."""
    out: Path = Path("own-covariance.jsonl")
    """Lines are added."""


def frozen(chosen: OwnCovariance, spec: str) -> Seen:
    """The features of the frozen backbone."""
    stream = TaskStream.load(spec, tasks=chosen.split_into, max_per_class=chosen.max_per_class)
    stream, theta0 = stream.validation(chosen.held_out, 0), Backbone.load(chosen.backbone)
    train, held = ([getattr(task, of) for task in stream] for of in ("train", "test"))
    return seen_in(stream, [features_of(theta0, theta0.model, train)], features_of(theta0, theta0.model, held))


def classes_of(seen: Seen) -> Gaussians:
    """As a pool knows them: at theta0, or carried to the mean of all modules."""
    if len(seen.means) == 1:
        return Gaussians.join([seen.classes(0, task) for task in range(seen.tasks)])
    steps = [fit_drift(*seen.step(task)) for task in range(seen.tasks)]
    return Gaussians.join(affine(seen, steps))


def accuracies(seen: Seen) -> Iterator[tuple[str, float]]:
    """What is varied, and the accuracy on held-out images, percent."""

    def accuracy(part: float) -> float:
        with mock.patch.object(discriminant, "OWN", part):
            head = discriminant.discriminant(classes) if part else discriminant.linear_discriminant(classes)
        return 100 * float((head(seen.held).argmax(1) == seen.held_labels).double().mean())

    classes = classes_of(seen)
    for part in (0.0, *PARTS):
        yield f"part {part:g}", accuracy(part)
    for rank in RANKS:
        with mock.patch.object(gaussians, "RANK", rank):
            classes = classes_of(seen)
        yield f"part {discriminant.OWN:g}, directions {rank}", accuracy(discriminant.OWN)


def run(chosen: OwnCovariance) -> None:
    """Measure."""
    torch.set_num_threads(chosen.threads)
    made = {"machine": machine(torch.device("cpu")), "code": code()}
    features = [(spec, lambda spec=spec: frozen(chosen, spec)) for spec in chosen.streams]
    features += [(path.name, lambda path=path: Seen(**torch.load(path))) for path in chosen.seen]
    for name, made_of in features:
        for what, accuracy in accuracies(made_of()):
            about: dict[str, Any] = {"features": name, "held_out": chosen.held_out, "name": what}
            line = {"run": about, "result": {"accuracy": accuracy}, **made}
            with chosen.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name:30s} {what:30s} {accuracy:6.2f}", flush=True)


if __name__ == "__main__":
    run(tyro.cli(OwnCovariance))
