"""The card of a module: what it is, and what influenced it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.backbones.locations import absolute, kept
from intarsia.strict_json import parse_json


@dataclass(frozen=True)
class Influence:
    """The other tasks a module was influenced by, by what of them it saw."""

    fisher: tuple[str, ...] = ()
    """Tasks whose Fisher regularized it."""
    statistics: tuple[str, ...] = ()
    """Tasks whose class statistics its reference head was made with."""
    vectors: tuple[str, ...] = ()
    """Tasks whose task vectors it was trained through (IEL)."""
    prototypes: tuple[str, ...] = ()
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

    def kept(self, folder: Path) -> "Card":
        """As the pool in a folder keeps it: see ``locations``."""
        return self._located(partial(kept, folder=folder))

    def found(self, folder: Path, renamed: Mapping[str, str]) -> "Card":
        """The inverse of ``kept``, with the names its classes have today (``renamed``: then -> today)."""
        card = self._located(partial(absolute, base=folder))
        if not renamed:
            return card
        changes = [*card.stream.get("changes", ()), {"subset": [self.task]}, {"renamed": dict(renamed)}]
        classes = tuple(renamed.get(name, name) for name in self.classes)
        return replace(card, classes=classes, stream={**card.stream, "changes": changes})

    def _located(self, place: Callable[[str], str]) -> "Card":
        return replace(self, stream=located(self.stream, place))

    @classmethod
    def from_bytes(cls, data: bytes, task: str) -> "Card":
        """The card of a task, from its file's bytes.

        Raises:
            ValueError, KeyError, TypeError: they are not a card's.
        """
        card = cls.from_record(parse_json(data))
        if not all(isinstance(name, str) for name in (card.task, *card.classes)) or not isinstance(card.images, int):
            raise TypeError("its names are not texts, or its images not a number")
        if card.task != task:
            raise ValueError(f"it is of task {card.task!r}")
        return card


def located(stream: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """What a stream was loaded from, with its spec put through ``place``."""
    load = stream.get("load")
    return {**stream, "load": {**load, "spec": place(load["spec"])}} if load else dict(stream)
