"""A module: all that is kept of one learned task."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from intarsia.adapters import Adapter
from intarsia.anchor import Anchor
from intarsia.drift import FeatureDrift
from intarsia.heads import Head
from intarsia.statistics import ClassStatistics
from intarsia.storage import load, reading, save
from intarsia.task_vector import TaskVector


@dataclass(frozen=True)
class Influence:
    """The other tasks a module was influenced by, by what of them it saw."""

    fisher: tuple[str, ...] = ()
    """Tasks whose Fisher regularized it."""
    statistics: tuple[str, ...] = ()
    """Tasks whose class statistics its reference head was aligned with."""
    vectors: tuple[str, ...] = ()
    """Tasks whose task vectors it was trained through (IEL)."""
    anchors: tuple[str, ...] = ()
    """Tasks whose task vectors stood in the mean in which the place of its classes was measured."""

    def of(self, task: str) -> list[str]:
        """In which of these ways ``task`` took part."""
        return [way for way, tasks in asdict(self).items() if task in tasks]


@dataclass(frozen=True)
class Card:
    """What a module is: the JSON beside its tensors."""

    task: str
    classes: tuple[str, ...]
    images: int
    settings: Mapping[str, Any]
    stream: Mapping[str, Any]
    versions: Mapping[str, str]
    influenced_by: Influence = field(default_factory=Influence)
    measures: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Card":
        """The inverse of ``record``."""
        influence = {way: tuple(tasks) for way, tasks in record["influenced_by"].items()}
        return cls(**{**record, "classes": tuple(record["classes"]), "influenced_by": Influence(**influence)})

    @classmethod
    def read(cls, path: Path) -> "Card":
        """From a file.

        Raises:
            InputError: it is missing or damaged.
        """
        with reading(path):
            return cls.from_record(json.loads(path.read_text()))


@dataclass(frozen=True)
class Module:
    """Task vector, head, reference head, class statistics, feature drift and card of one task.

    Args:
        card: what it is.
        vector: ``<weight name>.<part>`` -> tensor, the adapter's parts.
        head: the fine-tuned head of its classes, on features whose mean was put back to where it was at theta0.
        reference: the reference head it started from.
        statistics: of its classes at theta0.
        drift: what the whole task vector does to features at theta0.
        shift: (D,) how far the whole task vector moves the mean feature; zero if training did not put it back.
        anchor: its classes in the mean of the modules up to it.
    """

    card: Card
    vector: Mapping[str, Tensor]
    head: Head
    reference: Head
    statistics: ClassStatistics
    drift: FeatureDrift
    shift: Tensor
    anchor: Anchor

    def write(self, folder: Path) -> None:
        """Its files, into a new folder: card.json and vector, head, statistics, drift, anchor (.safetensors)."""
        folder.mkdir(parents=True)
        reference = {f"reference.{key}": value for key, value in self.reference.tensors().items()}
        save(self.vector, folder / "vector.safetensors")
        save({**self.head.tensors(), **reference, "shift": self.shift}, folder / "head.safetensors")
        save(self.statistics.tensors(), folder / "statistics.safetensors")
        save(self.drift.tensors(), folder / "drift.safetensors")
        save(self.anchor.tensors(), folder / "anchor.safetensors")
        (folder / "card.json").write_text(json.dumps(self.card.record(), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Module":
        """The inverse of ``write``.

        Raises:
            InputError: a file is missing or damaged.
        """
        card, vector = Card.read(folder / "card.json"), load(folder / "vector.safetensors")
        with reading(folder):
            head = load(folder / "head.safetensors")
            return cls(
                card=card,
                vector=vector,
                head=Head.from_tensors(head),
                reference=Head(head["reference.weight"], head["reference.bias"]),
                statistics=ClassStatistics.from_tensors(load(folder / "statistics.safetensors")),
                drift=FeatureDrift.from_tensors(load(folder / "drift.safetensors")),
                shift=head["shift"],
                anchor=Anchor.from_tensors(load(folder / "anchor.safetensors")),
            )

    def own_head(self) -> Head:
        """The fine-tuned head for the features of the module alone."""
        return self.head.shifted(self.shift)

    def head_on(self, aligned: Head, offset: Tensor | None = None) -> Head:
        """The fine-tuned head as a vector on another head of its classes: that + (head - reference).

        A module's head was tuned from the reference heads of its day. Others made since, with the classes that came
        later, are on one scale with each other; what fine-tuning changed is added to them.

        Args:
            aligned: head of the module's classes that was not fine-tuned.
            offset: (D,) how far from their place at theta0 the features lie for which it is.
        """
        tuned = Head(self.head.weight - self.reference.weight, self.head.bias - self.reference.bias)
        tuned = tuned if offset is None else tuned.shifted(offset)
        return Head(aligned.weight + tuned.weight, aligned.bias + tuned.bias)

    def dense(self, adapter: Adapter, tuned: Mapping[str, Tensor]) -> TaskVector:
        """The whole task vector; ``tuned`` is theta0 by weight name."""
        return TaskVector({name: self.delta(name, adapter, theta0) for name, theta0 in tuned.items()})

    def delta(self, name: str, adapter: Adapter, theta0: Tensor) -> Tensor:
        """Tau (O, I) of one weight, dense."""
        return adapter.delta(self.parts(name, theta0), theta0)

    def parts(self, name: str, theta0: Tensor) -> dict[str, Tensor]:
        """The adapter's parts of one weight, where theta0's value of it is."""
        return {part: value.to(theta0) for part, value in self._parts[name].items()}

    @cached_property
    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """Weight name -> part -> tensor."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in self.vector.items():
            name, _, part = key.rpartition(".")
            found.setdefault(name, {})[part] = value
        return found
