"""What cost is measured on: a backbone, a pool of tasks learned before, and the next task in full size.

Drawings are those of the built-in stream; beyond its hundred classes come rotations, mirror images, inversions and
shifts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from intarsia import Backbone, LoRA, Pool, learn
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.data.sources.builtin import load_builtin
from intarsia.data.stream import TaskStream
from intarsia.regularizers.ita import ITA
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState

Network = Literal["vit_sketch", "vit_tiny"]
PER_CLASS = 100
VARIANTS = 32


def network(name: Network, *, width: int = 192, depth: int = 12) -> Backbone:
    """The built-in backbone, or a vision transformer of random weights: 64 px, patch 8, three channels."""
    if name == "vit_sketch":
        return Backbone.load()
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415  after the guard

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=64, patch_size=8, embed_dim=width, depth=depth, num_heads=max(1, width // 64), num_classes=0
        )
    preprocessing = Preprocessing(64, 64, 3, (0.5,) * 3, (0.5,) * 3)
    return Backbone(model, name=f"vit-{width}-{depth}", preprocessing=preprocessing)


def drawings(classes: Sequence[int], per_class: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 28, 28) of some of 3,200 classes, and their labels (N,), positions in ``classes``."""
    images = load_builtin("sketches").images[:, :, None]  # (100, 100, 1, 28, 28)
    picked = torch.arange(per_class) % images.shape[1]
    made = [_varied(images[number % 100][picked], number // 100) for number in classes]
    return torch.cat(made), torch.arange(len(classes)).repeat_interleave(per_class)


def _varied(images: Tensor, variant: int) -> Tensor:
    if not 0 <= variant < VARIANTS:
        raise ValueError(f"variant {variant}: there are {VARIANTS}")
    turned = torch.rot90(images, variant % 4, (2, 3))
    mirrored = turned.flip(3) if variant // 4 % 2 else turned
    shaded = 255 - mirrored if variant // 8 % 2 else mirrored
    return shaded.roll(7, 3) if variant // 16 else shaded


def tasks(first: int, count: int, classes: int, per_class: int) -> TaskStream:
    """Tasks from number ``first`` (from 0) on, of so many classes and images to train, a fifth of them to test."""
    numbers = range(first * classes, (first + count) * classes)
    images, labels = drawings(numbers, per_class)
    test = torch.cat([(labels == c).nonzero()[: max(1, per_class // 5), 0] for c in range(len(numbers))])
    names = [f"class{n}" for n in numbers]
    split = {f"task{first + t}": names[t * classes : (t + 1) * classes] for t in range(count)}
    sides = (images, labels), (images[test], labels[test])
    return TaskStream.from_arrays(*sides, names, split=split, name="relabelled", augmentation="sketch")


@dataclass(frozen=True)
class Scene:
    """The last of T tasks, about to be learned.

    Args:
        backbone: theta0.
        pool: of the T - 1 tasks before, learned from few images.
        stream: the task, in full size.
        test: the tasks before it, with as many test images as they would have in full size.
    """

    backbone: Backbone
    pool: Pool
    stream: TaskStream
    test: TaskStream

    @classmethod
    def of(
        cls, backbone: Backbone, folder: Path, *, tasks_in_all: int, classes: int, images: int, few: int = 8
    ) -> "Scene":
        """Learn T - 1 >= 1 tasks of ``few`` images a class into ``folder``; the last one has ``images`` in all."""
        per_class = max(2, images // classes)
        last = tasks(tasks_in_all - 1, 1, classes, per_class)
        quick = Settings(epochs=1, batch_size=64, lr=1e-4, normalize_fisher=True)
        earlier = tasks(0, tasks_in_all - 1, classes, few)
        pool = learn(backbone, earlier, out=folder, adapter=LoRA(16), regularizer=ITA(0.1), training=quick)
        return cls(backbone, pool, last, tasks(0, tasks_in_all - 1, classes, per_class))

    def state(self) -> LearnerState:
        """What the learner knows before the task."""
        return LearnerState.of(self.pool)
