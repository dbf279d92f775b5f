"""What all methods of a comparison have in common, and everything else that decides about a run's numbers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.libraries.builtin import BUILTIN
from intarsia.backbones.locations import absolute
from intarsia.backbones.names import TARGETS
from intarsia.data.choices import DEFAULT_STREAM
from intarsia.data.files import FileHashes
from intarsia.data.fingerprint import fingerprint
from intarsia.data.stream import TaskStream
from intarsia.machine import code, machine, on_device
from intarsia.progress import Progress, silent
from intarsia.study.choice import Source
from intarsia.training.settings import Precision

BUDGET = ("source", "backbone", "targets", "epochs", "batch_size", "precision", "validation")
"""Fields of a bench that say what is compared; the others say what it runs on."""


@dataclass(frozen=True)
class Bench:
    """What all methods have in common.

    Args:
        source: the stream.
        backbone: by name, as ``Backbone.load`` takes it.
        targets: patterns of the linear layers whose weights are trained.
        epochs: passes over each task's images.
        batch_size: images per step.
        precision: of products in training, features and Fisher.
        device: cpu, cuda, mps, or auto for the best there is.
        threads: of torch in each run; its own choice if None.
        validation: measure on this part of the training images, held out; 0 for the test images.
        rates: method -> learning rate in place of its own.
    """

    source: Source = field(default_factory=Source)
    backbone: str = BUILTIN
    targets: tuple[str, ...] = TARGETS
    epochs: int = 4
    batch_size: int = 32
    precision: Precision = "fp32"
    device: str = "auto"
    threads: int | None = None
    validation: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name the data that is taken by default: the record and the page say it."""
        if self.source.data is None:
            object.__setattr__(self, "source", replace(self.source, data=DEFAULT_STREAM))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(asdict(self), default=str))

    def budget(self) -> dict[str, Any]:
        """The part of the record that says what is compared: stream, backbone and budget."""
        found = {name: value for name, value in self.record().items() if name in BUDGET}
        return {**found, "source": {**found["source"], "cache": None}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Bench":
        """The inverse of ``record``."""
        source = dict(record["source"])
        split = source.pop("split")
        known = Source(**{**source, "only": tuple(source["only"])}, split=None if split is None else Path(split))
        return cls(**{**record, "source": known, "targets": tuple(record["targets"])})

    def absolute(self) -> "Bench":
        """With all paths absolute: what it loads does not depend on the working directory."""
        return replace(self, source=self.source.absolute(), backbone=absolute(self.backbone))

    def theta0(self) -> Backbone:
        """The backbone, on its device."""
        return Backbone.load(self.backbone, targets=self.targets).to(on_device(self.device))

    def stream(self, seed: int) -> TaskStream:
        """The stream of a seed."""
        stream = self.source.load(seed)
        return stream.validation(self.validation, 0) if self.validation else stream

    def machine(self) -> str:
        """What its runs are made on: the kind of processor, torch's threads, the device."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            return machine(on_device(self.device))
        finally:
            torch.set_num_threads(before)


def made_with(
    bench: Bench, theta0: Backbone, stream: TaskStream, files: FileHashes, progress: Progress = silent
) -> dict[str, Any]:
    """What decides about a run's numbers beside its settings; fit for JSON.

    Args:
        bench: of the run.
        theta0: its backbone.
        stream: its stream, of the run's seed.
        files: what is known of the hashes of files.
        progress: told how many images are hashed.

    Raises:
        InputError: a file cannot be read.
    """
    return {
        "code": code()["sources"],
        "torch": version("torch"),
        "timm": version("timm"),
        "weights": theta0.hash[:16],
        "preprocessing": theta0.preprocessing.record(),
        "images": fingerprint(stream, theta0.preprocessing, files, progress),
        "machine": bench.machine(),
    }


def difference(before: Any, now: Any, of: str = "") -> str | None:
    """Where two records first differ, in words; None if they are equal."""
    if before == now:
        return None
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*now, *before)):
            if found := difference(before.get(key), now.get(key), f"{of} {key}".strip()):
                return found
    return f"{of} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
