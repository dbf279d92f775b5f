"""Tiny networks, streams and modules for the tests; whatever is random has an explicit seed."""

import ctypes
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia import IA3, Backbone, Full, LoRA, TaskStream, TaskVector
from intarsia.adapters import Adapter, Attachment
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.class_stats.drift import FeatureDrift
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.prototypes import ClassPrototypes
from intarsia.class_stats.statistics import ClassStatistics
from intarsia.curvature.fisher import DiagonalMetric
from intarsia.heads.head import Head
from intarsia.store.card import Card
from intarsia.store.module import Module
from intarsia.training.settings import Settings

import_torchvision()  # before any test imports timm
COLOURS = {
    "blue": (40, 40, 220),
    "cyan": (20, 200, 200),
    "gold": (220, 180, 20),
    "green": (40, 200, 40),
    "grey": (128, 128, 128),
    "red": (220, 40, 40),
}
WIDTH = 16
GREY = Preprocessing(size=8, resize=8, channels=1, mean=(0.5,), std=(0.25,))
PLAIN = Settings(normalize_fisher=False, batch_size=64, epochs=3, lr=3e-4)
QUICK = replace(PLAIN, epochs=2, batch_size=8, lr=1e-2, pretune_epochs=1)
ADAPTERS: tuple[Adapter, ...] = (LoRA(2), Full(), IA3())
REPEATED = ("called twice", "two names of one layer", "one parameter of two layers", "on other tokens")
KINDS = tuple(adapter.kind for adapter in ADAPTERS)


def settings(**changes: Any) -> Settings:
    """Plain settings with some changes."""
    return replace(PLAIN, **changes)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


class SplitBlock(nn.Module):
    """A residual block with q, k, v of their own, in timm's names; it mixes (B, N, D) over its tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q", "k", "v", "proj")})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.attn[name](x) for name in ("q", "k", "v"))
        return x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v))


class SplitNet(nn.Module):
    """Images (B, 1, 8, 8) -> features (B, 8): two residual blocks, then a layer that sees one vector an image."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(SplitBlock(8), SplitBlock(8))
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(8, 8, bias=False)})

    def forward(self, images: Tensor) -> Tensor:
        return self.mlp["fc1"](self.blocks(images.squeeze(1)).mean(1)).tanh()


class Repeated(nn.Module):
    """Images (B, 1, 8, 8) -> features (B, 8); ``how`` says why the first layer's weight is used twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        first, middle = nn.Linear(8, 8), nn.Linear(8, 8)
        second = nn.Linear(8, 8) if how == "one parameter of two layers" else first
        second.weight = first.weight
        self.blocks = nn.ModuleDict({"fc1": first, "fc2": middle})
        if how != "called twice":
            self.again = nn.ModuleDict({"fc1": second})
        self.pooled = nn.Linear(8, 8)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        fc1, fc2 = self.blocks["fc1"], self.blocks["fc2"]
        second = fc1 if self.how == "called twice" else self.again["fc1"]
        x = fc2(fc1(images.squeeze(1)).tanh()).tanh()
        if self.how == "on other tokens":
            second(x[:, :3])  # what comes of it goes nowhere
            return fc1(x[:, :2]).mean(1)
        return second(x).mean(1) + fc1(x.mean(1))


def redraw(model: nn.Module, seed: int, dtype: torch.dtype) -> nn.Module:
    """Every parameter anew, large enough that no gradient is near zero; a function of the seed alone."""
    generator = seeded(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
        parameter.data = (drawn + 1 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else drawn).to(
            dtype
        )
    return model


def tiny_vit(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """timm's vision transformer of 2 layers: (B, 1, 8, 8) -> (B, 16)."""
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415  only beside an imported intarsia

    with torch.random.fork_rng():
        model = VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, num_classes=0, embed_dim=WIDTH, depth=2, num_heads=2, mlp_ratio=1.5
        )
    return redraw(model, seed, dtype)


def backbone(seed: int = 0, dtype: torch.dtype = torch.float32) -> Backbone:
    """A fresh theta0; equal seeds give equal ones."""
    return Backbone(tiny_vit(seed, dtype), name=f"tiny{seed}", preprocessing=GREY)


def split_backbone(seed: int = 0, dtype: torch.dtype = torch.float64) -> Backbone:
    with torch.random.fork_rng():
        model = SplitNet()
    return Backbone(redraw(model, seed, dtype), name="split", preprocessing=GREY)


def repeated(how: str, dtype: torch.dtype = torch.float64) -> Backbone:
    with torch.random.fork_rng():
        model = Repeated(how)
    return Backbone(redraw(model, 3, dtype), name=how, preprocessing=GREY, targets=["*fc1", "*fc2"])


def inputs(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normalised images (N, 1, 8, 8)."""
    return randn(count, 1, 8, 8, seed=seed + 1000, dtype=dtype)


def stream(tasks: int = 4, classes: int = 2, train: int = 6, test: int = 4, seed: int = 0) -> TaskStream:
    """Tasks `task01`, ... of classes `class0`, ...; an image is its class's pattern under heavy noise.

    Were the classes easily told apart, the reference heads would leave no loss, and nothing would be learned.
    """
    count = tasks * classes
    patterns = torch.randint(100, 156, (count, 8, 8), generator=seeded(seed))

    def part(each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count).repeat_interleave(each)
        noise = torch.randint(-100, 100, (len(labels), 8, 8), generator=generator)
        return (patterns[labels] + noise).to(torch.uint8), labels

    return TaskStream.from_arrays(
        part(train, seeded(seed + 1)), part(test, seeded(seed + 2)), [f"class{i}" for i in range(count)], tasks=tasks
    )


def head(classes: int, width: int = WIDTH, seed: int = 0, dtype: torch.dtype = torch.float64) -> Head:
    return Head(randn(classes, width, seed=seed, dtype=dtype), randn(classes, seed=seed + 1, dtype=dtype))


def vectors(count: int, seed: int = 0, shapes: Mapping[str, tuple[int, int]] | None = None) -> list[TaskVector]:
    """Random task vectors in float64."""
    shapes = shapes or {"a.weight": (3, 4), "b.weight": (2, 5)}
    return [
        TaskVector({n: randn(*shape, seed=seed + 100 * t + i) for i, (n, shape) in enumerate(shapes.items())})
        for t in range(count)
    ]


def positive(like: Mapping[str, Tensor], seed: int) -> DiagonalMetric:
    """A positive diagonal metric of the names and shapes of ``like``."""
    sizes = {n: (w.shape, w.dtype) for n, w in like.items()}
    drawn = {n: randn(*s, seed=seed + i, dtype=d).square() + 0.01 for i, (n, (s, d)) in enumerate(sizes.items())}
    return DiagonalMetric(drawn)


def shake(attachment: Attachment, seed: int, size: float = 0.2) -> None:
    """Move every part of an attached adapter at random."""
    generator = seeded(seed)
    with torch.no_grad():
        for part in attachment.parameters():
            part.add_(torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype), alpha=size)


def module(task: str, classes: Sequence[str], adapter: Adapter, theta0: Backbone, seed: int) -> Module:
    """A module with random parts, head and statistics, of the backbone's type."""
    with theta0.attach(adapter, seeded(seed)) as attachment:
        shake(attachment, seed)
        state = attachment.state()
    dtype = next(iter(theta0.trainable.values())).dtype
    count = len(classes)
    statistics = plain_statistics(torch.zeros(count, WIDTH), torch.ones(WIDTH))
    drift = FeatureDrift(randn(WIDTH, WIDTH, seed=seed + 3, dtype=dtype) / 9, randn(WIDTH, seed=seed + 4, dtype=dtype))
    card = Card(task, tuple(classes), images=5, settings={}, stream={}, versions={})
    tuned, reference = head(count, seed=seed, dtype=dtype), head(count, seed=seed + 7, dtype=dtype)
    steps = FeatureDrift(randn(WIDTH, WIDTH, seed=seed + 5, dtype=dtype) / 9, randn(WIDTH, seed=seed + 6, dtype=dtype))
    scatter = torch.eye(WIDTH, dtype=torch.float64) * 9
    prototypes = ClassPrototypes(Gaussians(randn(count, WIDTH, seed=seed + 8, dtype=torch.float64), scatter, 9), steps)
    shift = randn(WIDTH, seed=seed + 9, dtype=dtype)
    return Module(card, state, tuned, reference, statistics, drift, shift, prototypes)


def plain_statistics(centres: Tensor, variances: Tensor) -> ClassStatistics:
    """Of classes with centres (C, D) and independent features of variances (D,): as good as infinitely many images."""
    many = 10**12
    return ClassStatistics(centres, torch.diag(variances) * many, many)


def contents(folder: Path, without: Iterable[str] = ()) -> dict[str, str]:
    """Relative path -> hash of every file in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@contextmanager
def permissions_hold() -> Iterator[None]:
    """Files' permissions bind this thread, be it the administrator's: without the capabilities to pass over them."""
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    libc, head = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low words, then the high ones
    assert libc.capget(head, held) == 0, os.strerror(ctypes.get_errno())
    fewer = (ctypes.c_uint32 * 6)(held[0] & ~0b110, *held[1:])  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, fewer) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(head, held) == 0, os.strerror(ctypes.get_errno())


class PlainSGD:
    """A head in a plain loop of SGD, written out with autograd."""

    def __init__(self, start: Head) -> None:
        self.weight, self.bias = (t.clone().requires_grad_() for t in (start.weight, start.bias))

    def head(self) -> Head:
        return Head(self.weight.detach(), self.bias.detach())

    def step(self, x: Tensor, y: Tensor, lr: float, *, normalised: bool) -> None:
        logits = F.linear(x, self.weight, self.bias)
        if normalised:
            logits = logits / (0.1 * logits.norm(dim=1, keepdim=True))
        slopes = torch.autograd.grad(F.cross_entropy(logits, y), [self.weight, self.bias])
        with torch.no_grad():
            for parameter, slope in zip((self.weight, self.bias), slopes, strict=True):
                parameter.sub_(slope, alpha=lr)


def newton(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum of a quadratic by one Newton step on its autograd gradient and Hessian."""
    gradient = torch.autograd.functional.jacobian(objective, start)
    hessian = torch.autograd.functional.hessian(objective, start)
    assert isinstance(gradient, Tensor)
    assert isinstance(hessian, Tensor)
    n = start.numel()
    return start - torch.linalg.solve(hessian.reshape(n, n), gradient.flatten()).reshape(start.shape)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal names and equal tensors, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def timm_weights(folder: Path) -> Path:
    """A file of random weights of a small timm model of three channels, `test_vit`."""
    import timm  # noqa: PLC0415  only beside an imported intarsia

    path = folder / "weights.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def small_vit(root: Path) -> str:
    """Timm's smallest network at a size at which it is fast, with the weights of ``photographs``."""
    return f"timm/test_vit@{root / 'weights.safetensors'}?image-size=48"


def photographs(root: Path, train: int = 6, test: int = 2) -> Path:
    """Put coloured images of six classes in a folder's photos/, and weights of a small timm model beside them.

    Every image is tinted at random as well: were the classes easily told apart, nothing would be learned.
    """
    timm_weights(root)
    drawn = random.Random(0)
    for part, count in (("train", train), ("test", test)):
        for name, rgb in COLOURS.items():
            folder = root / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (40, 30), tuple((c + 2 * drawn.randrange(256)) // 3 for c in rgb))
                for _ in range(200):
                    image.putpixel((drawn.randrange(40), drawn.randrange(30)), (drawn.randrange(256),) * 3)
                image.save(folder / f"{i}.png")
    return root
