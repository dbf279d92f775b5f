"""How class statistics follow the mean of the modules: maps of features, by accuracy and the place of class means.

    python benchmarks/reproduction/drift_maps.py --setting iel-full,1e-3,4,1 --out drift-maps.jsonl

The modules are learned on four fifths of the training images; the other fifth is classified. The features of all tasks'
images in the mean of the first t modules, for every t, are kept beside the output, so that maps are tried in seconds.
A map predicts where the classes of old tasks lie in the mean of all modules. It is fitted on the images of later tasks:
of the task that makes the step, and where it says so of some after it, too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from results import parsed, setting_with
from torch import Tensor, nn

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import outputs
from intarsia.class_stats.drift import FeatureDrift, compensate, fit_drift
from intarsia.class_stats.gaussians import Gaussians
from intarsia.data.image_set import ImageSet
from intarsia.data.stream import TaskStream
from intarsia.heads.discriminant import linear_discriminant
from intarsia.machine import code, machine
from workbench import Workbench

Move = Callable[[Tensor], Tensor]
"""Features or class means (N, D) -> where they come to lie, (N, D)."""


@dataclass(frozen=True)
class DriftMaps:
    """Which modules, and where the table goes."""

    setting: str = "iel-full,1e-3,4,1"
    """Cell, learning rate, epochs, strength."""
    stream: str = "chalk"
    """As ``intarsia learn --data``."""
    seed: int = 0
    """Of everything random."""
    threads: int = 2
    """Threads of torch."""
    out: Path = Path("drift-maps.jsonl")
    """A line per map; features go beside it, to ``<out>.pt``, and are used again."""


@dataclass(frozen=True)
class Seen:
    """Features of all images in every mean.

    Args:
        means: of mean t = 0 .. T (0 is theta0) and task, (N, D).
        labels: by task, (N,) in 0 .. C - 1.
        held: (M, D) of the held-out images in the last mean.
        held_labels: (M,) over all classes.
    """

    means: list[list[Tensor]]
    labels: list[Tensor]
    held: Tensor
    held_labels: Tensor

    @property
    def tasks(self) -> int:
        """How many."""
        return len(self.labels)

    def classes(self, mean: int, task: int) -> Gaussians:
        """Of a task in a mean, as they are."""
        labels = self.labels[task]
        return Gaussians.of(self.means[mean][task], labels, int(labels.max()) + 1)

    def step(self, task: int, later: int = 0) -> tuple[Tensor, Tensor]:
        """Features before and after a task's step: of its own images, and of some tasks' after it."""
        last = task + 1 + later
        return torch.cat(self.means[task][task:last]), torch.cat(self.means[task + 1][task:last])


def learned(chosen: DriftMaps) -> Seen:
    """Learn the modules, and look at all images in every mean."""
    stream = TaskStream.load(chosen.stream).validation(0.2, 0)
    bench = Workbench(stream, chosen.seed)
    setting = setting_with(*parsed(chosen.setting))
    modules, theta0 = bench.learn(setting), bench.backbone
    means = [[one.prepared.features for one in bench.prepared_tasks]]
    networks = (bench.compose(setting, modules[:count]).network for count in range(1, len(modules) + 1))
    last = None
    for last in networks:
        means.append(features_of(theta0, last, [task.train for task in stream]))
    assert last is not None
    return seen_in(stream, means, features_of(theta0, last, [task.test for task in stream]))


def features_of(theta0: Backbone, network: nn.Module, images: Sequence[ImageSet]) -> list[Tensor]:
    """(N, D) of each set's images by a network with the backbone's preprocessing."""
    how = theta0.preprocessing
    return [outputs(network, one.pixels(how), how, theta0.device) for one in images]


def seen_in(stream: TaskStream, means: list[list[Tensor]], held: Sequence[Tensor]) -> Seen:
    """Features of a stream's training and held-out images, with their labels."""
    return Seen(means, [task.train.labels for task in stream], torch.cat([*held]), held_labels(stream))


def held_labels(stream: TaskStream) -> Tensor:
    """(M,) of a stream's test images, over all classes."""
    counts = torch.tensor([0, *(len(task.classes) for task in stream)]).cumsum(0).tolist()
    return torch.cat([task.test.labels + first for task, first in zip(stream, counts, strict=False)])


def affine(seen: Seen, steps: Sequence[FeatureDrift], *, covariance: bool = True) -> list[Gaussians]:
    """Every task's classes, moved by the steps after its own; their covariance, too, or not."""
    found: list[Gaussians] = []
    for task in range(seen.tasks):
        classes = own = seen.classes(task + 1, task)
        for step in steps[task + 1 :]:
            classes = compensate(classes, step)
        found.append(classes if covariance else replace(own, centres=classes.centres))
    return found


def moved(seen: Seen, steps: Sequence[Move], base: Sequence[Gaussians]) -> list[Gaussians]:
    """Every task's class means, moved by the steps after its own; the covariances are the base's."""
    found: list[Gaussians] = []
    for task, like in enumerate(base):
        centres = seen.classes(task + 1, task).centres
        for step in steps[task + 1 :]:
            centres = step(centres)
        found.append(replace(like, centres=centres))
    return found


def local(before: Tensor, after: Tensor, width: float, first: FeatureDrift | None) -> Move:
    """Each class mean moves as the images near it do (semantic drift compensation, arXiv 2004.00440).

    Args:
        before: (N, D).
        after: (N, D).
        width: of the weights, in standard deviations of a feature.
        first: moves all first; what it leaves is weighted.
    """
    x = before.double()
    left = after.double() - (first(x) if first else x)
    unit = x.std(0)

    def move(means: Tensor) -> Tensor:
        square = torch.cdist(means / unit, x / unit).square()
        weights = torch.softmax(-square / (2 * width**2 * x.shape[1]), 1)
        return (first(means) if first else means) + weights @ left

    return move


def network(before: Tensor, after: Tensor, hidden: int, steps: int, first: FeatureDrift) -> Move:
    """What an affine map leaves, by a small network on standardised features."""
    torch.manual_seed(0)
    x, left = before.float(), (after - first(before)).float()
    middle, unit, size = x.mean(0), x.std(0), left.std()
    end = nn.Linear(hidden, x.shape[1])
    nn.init.zeros_(end.weight)
    nn.init.zeros_(end.bias)
    net = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.GELU(), end)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    white = (x - middle) / unit
    for _ in range(steps):
        optimizer.zero_grad()
        (net(white + 0.2 * torch.randn_like(white)) - left / size).square().mean().backward()
        optimizer.step()

    def move(means: Tensor) -> Tensor:
        with torch.no_grad():
            return first(means) + (net((means.float() - middle) / unit) * size).double()

    return move


def maps(seen: Seen) -> dict[str, list[Gaussians]]:
    """Every task's classes in the mean of all modules: as they are, and by each map."""
    every = range(seen.tasks)
    own = [seen.step(task) for task in every]
    usual = [fit_drift(*step) for step in own]
    chain = affine(seen, usual)
    nowhere = [seen.classes(task + 1, task) for task in every]
    shift = [FeatureDrift(torch.zeros_like(u.matrix), (y - x).mean(0)) for u, (x, y) in zip(usual, own, strict=True)]
    found = {
        "measured on the classes' own images": [seen.classes(seen.tasks, task) for task in every],
        "none": nowhere,
        "translation": affine(seen, shift),
        "affine, ridge by cross-validation": chain,
    }
    for ridge in (0.005, 0.02, 0.1, 0.5, 2.0):
        found[f"affine, ridge {ridge:g}"] = affine(seen, [fit_drift(*step, [ridge]) for step in own])
    found["affine, covariances not moved"] = affine(seen, usual, covariance=False)
    for width in (0.2, 0.4):
        found[f"local weights, width {width:g}"] = moved(seen, [local(*step, width, None) for step in own], chain)
        both = [local(*step, width, first) for step, first in zip(own, usual, strict=True)]
        found[f"affine, then local weights, width {width:g}"] = moved(seen, both, chain)
    for hidden, steps in ((32, 100), (64, 300)):
        nets = [network(*step, hidden, steps, first) for step, first in zip(own, usual, strict=True)]
        found[f"affine, then a network of {hidden}"] = moved(seen, nets, chain)
    for later in (1, 3, seen.tasks - 1):
        more = [fit_drift(*seen.step(task, later)) for task in every]
        found[f"affine, on images of the next {later} tasks as well"] = affine(seen, more)
    return found


def measured(seen: Seen, classes: Sequence[Gaussians]) -> dict[str, float]:
    """Accuracy of the linear discriminant on held-out images, percent; distance of class means from where they are."""
    true = [seen.classes(seen.tasks, task) for task in range(seen.tasks)]
    head, covariance = linear_discriminant(Gaussians.join(classes)), Gaussians.join(true).covariance()
    right = head(seen.held).argmax(1) == seen.held_labels
    away = torch.cat([found.centres - there.centres for found, there in zip(classes, true, strict=True)])
    distance = (away * covariance.solve(away.T, 0.0).T).sum(1).clamp_min(0).sqrt()
    return {"accuracy": 100 * float(right.double().mean()), "distance": float(distance.mean())}


def run(chosen: DriftMaps) -> None:
    """Measure all maps."""
    torch.set_num_threads(chosen.threads)
    kept = chosen.out.with_suffix(".pt")
    if not kept.exists():
        torch.save(vars(learned(chosen)), kept)
    seen = Seen(**torch.load(kept))
    about: dict[str, Any] = {"stream": chosen.stream, "seed": chosen.seed, "setting": chosen.setting}
    with chosen.out.open("w") as file:
        for name, classes in maps(seen).items():
            line = {"run": {**about, "name": name}, "result": measured(seen, classes)}
            file.write(json.dumps({**line, "machine": machine(torch.device("cpu")), "code": code()}) + "\n")
            print(f"{name:50s} {line['result']['accuracy']:6.2f} {line['result']['distance']:6.3f}", flush=True)


if __name__ == "__main__":
    run(tyro.cli(DriftMaps))
