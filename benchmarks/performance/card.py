"""What one GPU makes of it: timm's ViT-B/16 at 224 px, random weights; ten minutes at most.

    python benchmarks/performance/card.py --rows card.jsonl --json
    python benchmarks/performance/card.py --device cpu --small       # all of it, tiny: that it runs

Rows, each written as it is known: the card's rate in matrix products; images per second of a forward pass, of a step of
PEFT's LoRA and of ours (ITA and IEL with LoRA, ITA with full fine-tuning; with --accumulate and --grad-checkpointing),
the share of that rate, peak memory; features; the Fisher, and its error in bf16 and tf32 against fp32; the CUDA tests.
A step of ours reads, copies, augments and normalises its images; PEFT's finds them ready on the card.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from phases import Rival
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from intarsia import IEL, ITA, Backbone, Full, LoRA, TaskStream
from intarsia.adapters import Adapter
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.curvature.protocol import Curvature
from intarsia.data.stream import Task
from intarsia.machine import machine, peak_memory
from intarsia.numerics import autocast
from intarsia.regularizers.protocol import Regularizer
from intarsia.training.fine_tuning import Configuration, fine_tune
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Precision, Settings
from intarsia.training.state import LearnerState, PreparedTask
from intarsia.training.steps import curvature_at_theta0, features_of
from intarsia.training.task import prepare
from watch import Told, forward, normalised, wait

TESTS = Path(__file__).parents[2] / "tests" / "test_cuda.py"


@dataclass(frozen=True)
class Card:
    """What to measure."""

    device: str = "cuda"
    """cuda, or cpu with --small."""
    small: bool = False
    """Two blocks, 32 px, 24 images: that all of it runs, whatever it takes."""
    images: int = 2048
    """Of a training task."""
    fisher_images: int = 5000
    """Of the Fisher that is timed."""
    compared: int = 512
    """Images on which Fishers and features are compared with those in fp32."""
    batch: int = 128
    """Images per step."""
    rounds: int = 3
    """Times each is measured; the first is a warm-up, the median of the others is given."""
    precision: Precision = "bf16"
    """Of forward passes and steps."""
    minutes: float = 10.0
    """No part is begun after that."""
    rows: Path | None = None
    """Add every row, as it is known, to this file, a line of JSON each."""
    only: tuple[str, ...] = ()
    """Only these rows, by name; all if none is named. What another row needs is made all the same."""
    json: bool = False
    """Print JSON at the end."""

    @property
    def tiny(self) -> "Card":
        """As ``--small`` has it."""
        return replace(self, images=24, fisher_images=16, compared=16, batch=8, rounds=2)


class Bench:
    """A backbone, two tasks, and what was found."""

    def __init__(self, chosen: Card) -> None:
        self.chosen, self.found, self.told = chosen, list[dict[str, Any]](), Told(chosen.rows)
        self.until = time.monotonic() + 60 * chosen.minutes
        self.backbone = vit(small=chosen.small).to(chosen.device)
        self.stream = tasks(self.backbone.preprocessing, chosen.images, 4 if chosen.small else 10)
        self.settings = Settings(epochs=1, batch_size=chosen.batch, precision=chosen.precision)
        self.rate = 0.0
        side = self.backbone.preprocessing.size
        with FlopCounterMode(display=False) as counter:
            self.backbone.features(torch.zeros(1, 3, side, side))
        self.per_image = counter.get_total_flops()
        self._ready: tuple[PreparedTask, LearnerState, LearnerState] | None = None

    @property
    def device(self) -> torch.device:
        """Where all is done."""
        return self.backbone.device

    def ready(self) -> tuple[PreparedTask, LearnerState, LearnerState]:
        """The second task, about to be fine-tuned; what is known before it, and with it."""
        if self._ready is None:
            first, second = self.stream
            prepared, before = prepare(self.backbone, first, LearnerState(), self.settings)
            plain = Configuration(LoRA(16), ITA(0.1), self.settings, self.stream.augmentation)
            before = before.with_vector(fine_tune(self.backbone, prepared, before, None, plain).vector)
            prepared, state = prepare(self.backbone, second, before, self.settings)
            self._ready = prepared, before, state
        return self._ready

    def row(self, what: str, measure: Callable[[], Mapping[str, Any]]) -> None:
        """Measure, and write it down; a part that fails leaves the others."""
        if time.monotonic() > self.until:
            made: dict[str, Any] = {"what": what, "error": f"not begun within {self.chosen.minutes:g} minutes"}
        else:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                made = {"what": what, **measure(), "peak_mib": self._peak()}
            except Exception as error:
                made = {"what": what, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        self.found.append(made)
        self.told.row(made)

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() // 2**20 if self.device.type == "cuda" else peak_memory()

    def timed(self, work: Callable[[], Any]) -> float:
        """Median seconds, the first round left out."""
        seconds: list[float] = []
        for _ in range(max(2, self.chosen.rounds)):
            started = time.perf_counter()
            work()
            wait(torch.empty(0, device=self.device))
            seconds.append(time.perf_counter() - started)
        return median(seconds[1:])

    def speed(self, images: int, seconds: float, passes: float) -> dict[str, Any]:
        """Images per second; and the share of the card's rate that so many forward passes' products are."""
        share = images / seconds * passes * self.per_image / self.rate if self.rate else 0.0
        return {"images_per_second": images / seconds, "passes": passes, "rate_share": share}


def vit(*, small: bool) -> Backbone:
    """ViT-B/16 at 224 px, or two blocks at 32 px; random weights."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415  after the guard

    torch.manual_seed(0)
    side, width, depth, heads = (32, 64, 2, 2) if small else (224, 768, 12, 12)
    model = VisionTransformer(
        img_size=side, patch_size=16, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
    )
    looks = Preprocessing(side, side, 3, (0.5,) * 3, (0.5,) * 3)
    return Backbone(model, name="vit-b-16", preprocessing=looks)


def tasks(looks: Preprocessing, images: int, classes: int) -> TaskStream:
    """Two tasks of noise, a patch of its own for every class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * images) % (2 * classes)
    shape = 2 * images, looks.channels, looks.resize, looks.resize
    pixels = torch.randint(0, 255, shape, generator=draw, dtype=torch.uint8)
    pixels[torch.arange(2 * images), 0, labels] = 255
    names = [f"class{n}" for n in range(2 * classes)]
    few = slice(0, 2 * classes)
    return TaskStream.from_arrays((pixels, labels), (pixels[few], labels[few]), names, tasks=2, augmentation="photo")


def products(bench: Bench) -> dict[str, Any]:
    """Operations per second of a large product, in the precision of the steps."""
    side = 256 if bench.chosen.small else 8192
    kind = torch.bfloat16 if bench.chosen.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
    bench.rate = 10 * 2 * side**3 / bench.timed(lambda: [a @ b for _ in range(10)])
    return {"teraflops": bench.rate / 1e12}


def passes(bench: Bench) -> dict[str, Any]:
    """A forward pass of the bare backbone, its images ready on the device."""
    pixels = bench.stream[0].train.tensor(bench.backbone.preprocessing)
    batches = normalised(bench.backbone, pixels, bench.chosen.batch)
    with autocast(bench.chosen.precision, bench.device):
        return bench.speed(len(pixels), bench.timed(lambda: forward(bench.backbone, batches)), 1)


def peft(bench: Bench) -> dict[str, Any]:
    """A step of PEFT's LoRA and a linear head, its images ready on the device."""
    train, backbone = bench.stream[0].train, bench.backbone
    pixels = train.tensor(backbone.preprocessing)
    batches = normalised(backbone, pixels, bench.chosen.batch)
    rival = Rival.of(backbone, LoRA(16), backbone.width, len(bench.stream[0].classes))

    def epoch() -> None:
        for x, y in zip(batches, train.labels.split(bench.chosen.batch), strict=True):
            rival.optimizer.zero_grad(set_to_none=True)
            with autocast(bench.chosen.precision, bench.device):
                logits = rival.head(rival.model(x))
            F.cross_entropy(logits.float(), y.to(x.device, non_blocking=True)).backward()
            rival.optimizer.step()

    return bench.speed(len(pixels), bench.timed(epoch), 2)


def step(bench: Bench, adapter: Adapter, regularizer: Regularizer, **changes: Any) -> dict[str, Any]:
    """A step of ours, the second task's: the loop as it is used, from uint8 images in memory.

    Products that are counted: a pass forward, one backward, another for all weights' gradients with full fine-tuning,
    and one at theta0; none that is made again.
    """
    prepared, before, state = bench.ready()
    configuration = Configuration(adapter, regularizer, replace(bench.settings, **changes), bench.stream.augmentation)
    rounds = range(max(2, bench.chosen.rounds))
    seconds = [fine_tune(bench.backbone, prepared, state, before.fisher, configuration).seconds for _ in rounds][1:]
    count = 2 + isinstance(adapter, Full) + configuration.settings.center_features
    found = bench.speed(len(prepared.task.train), median(s["training"] for s in seconds), count)
    return {**found, "start_seconds": median(s["regularizer"] for s in seconds)}


def fisher(bench: Bench, precision: Precision) -> dict[str, Any]:
    """Seconds of the Fisher, and how far it and the features lie from those in fp32 on fewer images."""
    settings, task, looks = replace(bench.settings, precision=precision), bench.stream[0], bench.backbone.preprocessing
    reference = bench.ready()[1].reference
    assert reference is not None
    whole, few = (tasks(looks, n, len(task.classes))[0] for n in (bench.chosen.fisher_images, bench.chosen.compared))

    def of(images: Task, settings: Settings) -> Curvature:
        return curvature_at_theta0(bench.backbone, images, reference, None, settings, Seeds(0, 1))

    exact, near = (of(few, replace(settings, precision=p)) for p in ("fp32", precision))
    apart = sum(float((f - exact.tensors()[n]).square().sum()) for n, f in near.tensors().items())
    size = sum(float(f.square().sum()) for f in exact.tensors().values())
    at, there = (features_of(bench.backbone, few, p) for p in ("fp32", precision))
    seconds = bench.timed(lambda: features_of(bench.backbone, whole, precision))
    return {
        "seconds": bench.timed(lambda: of(whole, settings)),
        "images": len(whole.train),
        "error": (apart / size) ** 0.5,
        "half_sample_error": exact.error,
        "features_per_second": len(whole.train) / seconds,
        "features_error": float((there - at).norm() / at.norm()),
    }


def tests() -> dict[str, Any]:
    """The tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(TESTS)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, cwd=TESTS.parents[1])
    return {"code": done.returncode, "said": done.stdout.strip().splitlines()[-1:]}


def main(chosen: Card) -> None:
    """Measure and print."""
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("card.py: no CUDA device is here; --device cpu --small runs all of it, tiny", file=sys.stderr)
        raise SystemExit(2)
    bench = Bench(chosen.tiny if chosen.small else chosen)
    parts: dict[str, Callable[[], Mapping[str, Any]]] = {
        "products": lambda: products(bench),
        "forward": lambda: passes(bench),
        "PEFT LoRA": lambda: peft(bench),
        "ITA LoRA": lambda: step(bench, LoRA(16), ITA(0.1)),
        "IEL LoRA": lambda: step(bench, LoRA(16), IEL(1.0)),
        "ITA full": lambda: step(bench, Full(), ITA(0.1)),
        "Fisher": lambda: fisher(bench, chosen.precision),
        "ITA LoRA, no drift": lambda: step(bench, LoRA(16), ITA(0.1), center_features=False, drift_penalty=0.0),
        "ITA full, --accumulate 4": lambda: step(bench, Full(), ITA(0.1), accumulate=4),
        "ITA full, --grad-checkpointing": lambda: step(bench, Full(), ITA(0.1), grad_checkpointing=True),
        **({"tests": tests} if bench.device.type == "cuda" else {}),
        "Fisher, tf32": lambda: fisher(bench, "tf32"),
    }
    for name in chosen.only:
        if name not in parts:
            print(f"card.py: no row {name!r}: expected some of {', '.join(parts)}", file=sys.stderr)
            raise SystemExit(2)
    for name, measure in parts.items():
        if name in (chosen.only or parts):
            bench.row(name, measure)
    found = {"machine": machine(bench.device), "torch": torch.__version__, "rows": bench.found}
    if chosen.json:
        print(json.dumps(found, default=str))


if __name__ == "__main__":
    main(tyro.cli(Card, description=__doc__))
