"""What the calls of a run on Ray, and the driver's part of them, cost: as measured, or from bytes and constants."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from intarsia.adapters.lora import LoRA
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.class_stats.drift import fit_drift
from intarsia.class_stats.prototypes import ClassPrototypes
from intarsia.class_stats.statistics import ClassStatistics, SeenClasses
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.engines.packing import pack, pack_fisher, pack_module, unpack_fisher
from intarsia.engines.staging import Staging
from intarsia.heads.discriminant import initial_heads
from intarsia.heads.head import Head
from intarsia.store.card import Card
from intarsia.store.module import Module
from intarsia.store.store import save_fisher

WIDTH = 768
TARGETS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
GB = 1e9
FEATURES, FISHER, EPOCH, PASS = 1.4, 4.0, 3.2, 1.2
"""Seconds of a phase in multiples of a forward pass over the task's images: docs/performance.md."""
LOADING = 20.0
"""Seconds in which a worker loads torch, the backbone and the stream."""


@dataclass(frozen=True)
class Setting:
    """Tasks, and the machines they are learned on.

    Args:
        classes: of a task.
        images: of a task, to train.
        epochs: passes over them.
        images_per_second: of a worker's forward passes.
        gigabits: per second, of the driver's network.
        per_machine: workers that share what was sent to their machine.
    """

    classes: int
    images: int
    epochs: int
    images_per_second: float
    gigabits: float
    per_machine: int


class Costs(Protocol):
    """What calls and the driver's part of them cost; ``task`` counts from 1."""

    def loading(self) -> float:
        """Seconds before a worker's first call."""
        ...

    def worker(self, method: str, task: int) -> float:
        """Seconds of a call."""
        ...

    def sent(self, method: str, task: int) -> float:
        """Seconds for which what a call needs keeps the driver's link."""
        ...

    def driver(self, step: str, task: int) -> Mapping[str, float]:
        """Seconds of the driver by kind: for a method's result, or for heads, added, together, total, written."""
        ...


@dataclass(frozen=True)
class Bytes:
    """Of a ViT-B/16's objects as they are sent and kept.

    Args:
        fisher: of a task; the sum of task vectors has as many.
        features: (N, D) of a task's images.
        statistics: of a task's classes.
        shared: of these, without what each class has of its own.
        module: with everything that is kept of a task.
        vector: the adapter's parameters in it.
        head: one row of a head, with its bias.
    """

    fisher: int
    features: int
    statistics: int
    shared: int
    module: int
    vector: int
    head: int


def objects(asked: Setting) -> tuple[DiagonalFisher, Module, Tensor, dict[str, Tensor]]:
    """A Fisher, a module and features of a ViT-B/16, drawn at random, and its trained weights."""
    import_torchvision()
    import timm  # noqa: PLC0415  after the guard

    drawn = torch.Generator().manual_seed(0)
    network = timm.create_model("vit_base_patch16_224", num_classes=0)
    weights = {n: p.detach() for n, p in network.named_parameters() if n.endswith(TARGETS)}
    fisher = DiagonalFisher({n: torch.rand(w.shape, generator=drawn) for n, w in weights.items()}, asked.images)
    vector = {f"{n}.{p}": v for n, w in weights.items() for p, v in LoRA(16).initial(n, w, drawn).items()}
    features = torch.randn(asked.images, WIDTH, generator=drawn)
    labels = torch.arange(asked.images) % asked.classes
    statistics = ClassStatistics.of(features, labels, asked.classes, None)
    head = initial_heads(statistics.gaussians())
    places = ClassPrototypes.of(features, features + 0.1, labels, asked.classes, earlier=features - 0.1)
    card = Card("task", tuple(f"class{i}" for i in range(asked.classes)), asked.images, {}, {}, {})
    drift = fit_drift(features, features + 0.1)
    return fisher, Module(card, vector, head, head, statistics, drift, features[0], places), features, weights


def size_of(fisher: DiagonalFisher, module: Module, features: Tensor) -> Bytes:
    """Of these objects, packed."""
    return Bytes(
        fisher=len(pack_fisher(fisher)),
        features=len(pack({}, features={"features": features})),
        statistics=len(pack({}, statistics=module.statistics.tensors())),
        shared=len(pack({}, statistics=module.statistics.shared().tensors())),
        module=len(pack_module(module, {})),
        vector=len(pack({}, vector=module.vector)),
        head=4 * (features.shape[1] + 1),
    )


@dataclass(frozen=True)
class Constants:
    """Measured here: seconds of the processor per GB, and those of the heads.

    Args:
        copy: what Ray does with bytes that are put or got.
        pack: tensors to bytes.
        unpack: bytes to tensors.
        add: of two Fishers.
        keep: bytes into a run's folder, with their hash.
        save: tensors into a file of the pool, with its hash.
        disk: waited for until the disk has either.
        dense: a task vector of LoRA's parameters, per GB of it.
        heads: seconds of one alignment.
        heads_per_task: what each task before adds to it.
    """

    copy: float
    pack: float
    unpack: float
    add: float
    keep: float
    save: float
    disk: float
    dense: float
    heads: float
    heads_per_task: float


def seconds_of(work: Callable[[], object], rounds: int = 5) -> float:
    """Of the processor, the least of some rounds: what other programs took of the machine's time is not the work's."""
    found: list[float] = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def flushed(data: bytes, path: Path, rounds: int = 3) -> float:
    """Seconds until the disk has what was written to a file, the least of some rounds."""
    found: list[float] = []
    for _ in range(rounds):
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            found.append(time.perf_counter() - began)
    return min(found)


def _heads_of(seen: SeenClasses) -> Head:
    assert seen.joined is not None
    return initial_heads(seen.joined)


def constants(asked: Setting) -> tuple[Bytes, Constants]:
    """Measure them on one thread, as the driver has."""
    torch.set_num_threads(1)
    fisher, module, features, weights = objects(asked)
    data, few = pack_fisher(fisher), 10
    per_gb = GB / len(data)
    found = size_of(fisher, module, features)

    def heads(tasks: int) -> float:
        known = SeenClasses((module.statistics.shared(),) * (tasks - 1)).with_task(module.statistics)
        return seconds_of(lambda: _heads_of(known.with_task(module.statistics)))

    one, many = heads(1), heads(1 + few)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        work: dict[str, Callable[[], object]] = {
            "copy": lambda: bytearray(data),
            "pack": lambda: pack_fisher(fisher),
            "unpack": lambda: unpack_fisher(data),
            "add": lambda: fisher + fisher,
            "keep": lambda: Staging(path / "staged").keep(1, "fisher", data),
            "save": lambda: save_fisher(fisher, path / "fisher"),
            "dense": lambda: module.dense(LoRA(16), weights),
        }
        return found, Constants(
            **{name: seconds_of(each) * per_gb for name, each in work.items()},
            disk=flushed(data, path / "flushed") * per_gb,
            heads=one,
            heads_per_task=(many - one) / few,
        )


def sums_before(task: int) -> int:
    """Sums of task vectors that the place of a task's classes needs: before it, and before the one before it."""
    return 1 + (task > 2)


@dataclass(frozen=True)
class Planned:
    """Costs of a ViT-B/16 on a cluster.

    Args:
        setting: see there.
        size: bytes of its objects.
        cost: the driver's seconds.
        tasks: of the stream.
    """

    setting: Setting
    size: Bytes
    cost: Constants
    tasks: int

    @property
    def link(self) -> float:
        """Bytes per second."""
        return self.setting.gigabits * GB / 8

    def heads(self, tasks: int) -> int:
        """Bytes of the heads of so many tasks."""
        return tasks * self.setting.classes * self.size.head

    @property
    def together(self) -> int:
        """Bytes that every fine-tuning is given of all tasks: the sum of Fishers, statistics and heads."""
        return self.size.fisher + self.tasks * self.size.shared + self.heads(self.tasks)

    def loading(self) -> float:
        """See ``Costs``."""
        return LOADING

    def worker(self, method: str, task: int) -> float:
        """See ``Costs``; what it is given and gives back is copied, unpacked and packed."""
        setting, size, cost = self.setting, self.size, self.cost
        means, tuned = 1 + sums_before(task), EPOCH * setting.epochs + PASS
        multiples = {"features": FEATURES, "fisher": FISHER, "tune": tuned, "place": means * PASS}
        given = {
            "features": 0,
            "fisher": self.heads(task),
            "tune": size.features + size.fisher + self.together,
            "place": size.module + sums_before(task) * size.fisher,
        }
        back = {
            "features": size.features + size.statistics,
            "fisher": size.fisher,
            "tune": size.module,
            "place": size.statistics,
        }
        moved = given[method] * (cost.copy + cost.unpack) + back[method] * (cost.copy + cost.pack)
        return multiples[method] * setting.images / setting.images_per_second + moved / GB

    def sent(self, method: str, task: int) -> float:
        """See ``Costs``: heads, the sum of vectors; what is known of all tasks, once to each machine."""
        shared = self.together / min(self.setting.per_machine, self.tasks)
        found = {"fisher": self.heads(task), "tune": shared, "place": sums_before(task) * self.size.fisher}
        found = found.get(method, 0)
        return found / self.link

    def driver(self, step: str, task: int) -> dict[str, float]:
        """See ``Costs``: what a result takes to come and be staged, and what each step does with it."""
        size, cost = self.size, self.cost
        take = cost.copy + cost.unpack
        came = {
            "features": size.features + size.statistics,
            "fisher": size.fisher,
            "tune": size.module,
            "place": size.statistics,
        }.get(step)
        if came is not None:
            kept = came * (cost.copy + cost.keep + cost.disk) / GB
            return {"network": came / self.link, "storage": kept}
        heads = self.heads(task)
        return {
            "heads": {
                "heads": cost.heads + (task - 1) * cost.heads_per_task + heads * (cost.pack + cost.copy) / GB,
                "reduction": size.features * take / GB,
            },
            "added": {"reduction": size.fisher * (take + cost.add) / GB},
            "together": {"reduction": self.together * (cost.pack + cost.copy) / GB},
            "total": {
                "reduction": (
                    size.module * take
                    + size.fisher * (cost.dense + cost.add + sums_before(task) * (cost.pack + cost.copy))
                )
                / GB
            },
            "written": {
                "reduction": (size.module * take + size.fisher * (take + cost.add)) / GB,
                "storage": (size.module + size.fisher + heads) * (cost.save + cost.disk) / GB,
            },
        }.get(step, {})
