"""Resident memory and time over the number of images: photos of 256 px, learned at 224 px, ten tasks.

    python benchmarks/performance/memory.py --images 5000 20000 50000 --json

Every number of images has a process of its own. Of every task it does all that reads images, on a small network, so
that what is measured is the images' part: features, class statistics, heads and Fisher, one epoch of augmented batches
in random order, and the test images' features. The photos are made in a folder that is removed at the end (20,000 take
0.3 GiB); decoded they take 147 KiB each.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

from intarsia import Backbone, TaskStream
from intarsia.backbones.forward import outputs
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.data.augmentation import augment
from intarsia.data.pixels import bytes_of
from intarsia.training.recommended import resolve
from intarsia.training.state import LearnerState
from intarsia.training.task import prepare

CLASSES, TASKS, TESTED = 100, 10, 5
LOOKS = Preprocessing(size=224, resize=224, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


@dataclass(frozen=True)
class Memory:
    """What to measure."""

    images: tuple[int, ...] = (5_000, 20_000, 50_000)
    """Training images in all, of 100 classes; one row each."""
    cache: str = "auto"
    """Where decoded images are kept: auto, off, or a folder."""
    threads: int = 2
    """Of torch."""
    rows: Path | None = None
    """Add each row to this file as it is known, a line of JSON."""
    json: bool = False
    """Print JSON in place of a table."""
    one: Path | None = None
    """Only read this folder of photos, in this process (what is called for each number)."""

    def run(self) -> None:
        """Measure, and print."""
        if self.one is not None:
            print(json.dumps(measured(self.one, self.cache, self.threads)))
            return
        rows = []
        for count in self.images:
            with tempfile.TemporaryDirectory() as folder:
                print(f"{count} photos", file=sys.stderr)
                make(Path(folder), count)
                options = ["--one", folder, "--cache", self.cache, "--threads", str(self.threads)]
                done = subprocess.run(
                    [sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True
                )
            rows.append({"images": count, "cache": self.cache, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr)
            if self.rows:
                with self.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows) if self.json else "\n".join(" | ".join(map(str, row.values())) for row in rows))


def make(root: Path, count: int) -> None:
    """Photos: smooth noise of its own colour for each class, no two alike; JPEG, 256 px, some 20 KiB each."""
    draw = np.random.default_rng(0)
    for side, number in (("train", count), ("test", TESTED * CLASSES)):
        for index in range(number):
            kind = root / side / f"{index % CLASSES:03d}"
            kind.mkdir(parents=True, exist_ok=True)
            coarse = draw.integers(0, 160, (16, 16, 3)) + np.array([index % 5, index // 5 % 5, index // 25 % 4]) * 20
            smooth = Image.fromarray(coarse.astype(np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
            smooth.save(kind / f"{index}.jpg", quality=85)


def measured(root: Path, cache: str, threads: int) -> dict[str, Any]:
    """Read the photos of a folder as learning does; memory in MiB, seconds."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = VisionTransformer(img_size=224, patch_size=32, num_classes=0, embed_dim=64, depth=2, num_heads=2)
    backbone = Backbone(network, name="small", preprocessing=LOOKS)
    stream = TaskStream.load(f"folder:{root}", tasks=TASKS, cache=cache)
    before, begun = resident(), time.perf_counter()
    settings, state = resolve(None).settings, LearnerState()
    with Watch() as watch:
        stream.decode(LOOKS)
        decoded = time.perf_counter()
        for number, task in enumerate(stream):
            _, state = prepare(backbone, task, state, settings)
            images, generator = task.train.pixels(LOOKS), torch.Generator().manual_seed(number)
            for batch in torch.randperm(len(images), generator=generator).split(64):
                augment(images[batch], stream.augmentation, LOOKS, generator)
            outputs(backbone.features, task.test.pixels(LOOKS), LOOKS, backbone.device)
        learned = time.perf_counter()
    count = sum(len(task.train) + len(task.test) for task in stream)
    return {
        "decoded_mib": count * bytes_of(LOOKS) // 2**20,
        "before_mib": before["VmRSS"],
        "peak_mib": resident()["VmHWM"],
        "peak_anonymous_mib": watch.anonymous,
        "decoding_seconds": round(decoded - begun, 1),
        "reading_seconds": round(learned - decoded, 1),
    }


def resident() -> dict[str, int]:
    """Of this process, in MiB: in all, at its peak, and without pages of files, which the system can take back."""
    text = Path("/proc/self/status").read_text()
    return {name: int(size) // 1024 for name, size in re.findall(r"(VmRSS|VmHWM|RssAnon):\s*(\d+) kB", text)}


class Watch:
    """The largest anonymous memory while it runs, looked at five times a second."""

    def __init__(self) -> None:
        self.anonymous, self._end = 0, Event()
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.2):
            self.anonymous = max(self.anonymous, resident()["RssAnon"])


if __name__ == "__main__":
    tyro.cli(Memory).run()
