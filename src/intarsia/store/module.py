"""A module: all that is kept of one learned task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from intarsia.adapters.protocol import Adapter
from intarsia.class_stats.drift import FeatureDrift
from intarsia.class_stats.prototypes import AGAIN, ClassPrototypes
from intarsia.class_stats.statistics import ClassStatistics
from intarsia.errors import InputError
from intarsia.heads.head import Head
from intarsia.store.card import Card
from intarsia.store.files import Seen, parse_tensors, save, write_json
from intarsia.task_vector import TaskVector


@dataclass(frozen=True)
class Trace:
    """What a composition needs of a module that it neither adds nor answers with, in whose mean classes are looked up.

    Args:
        task: whose module it is.
        prototypes: the step from the mean before it, and what it saw of the step before.
        drift: what the whole task vector does to features at theta0.
    """

    task: str
    prototypes: ClassPrototypes
    drift: FeatureDrift

    @classmethod
    def from_files(cls, read: Callable[[str], bytes], task: str) -> "Trace":
        """Of the files of a module: see ``Module.from_files``."""
        prototypes, drift = (parse_tensors(read(f"{name}.safetensors")) for name in ("prototypes", "drift"))
        return cls(task, ClassPrototypes.from_tensors(prototypes), FeatureDrift.from_tensors(drift))


@dataclass(frozen=True)
class Module:
    """Task vector, head, reference head, class statistics, feature drift and card of one task.

    Args:
        card: what it is.
        vector: ``<weight name>.<parameter>`` -> tensor, the adapter's parameters.
        head: the fine-tuned head of its classes, on features whose mean was put back to where it was at theta0.
        reference: the reference head it started from.
        statistics: of its classes at theta0.
        drift: what the whole task vector does to features at theta0.
        shift: (D,) how far the whole task vector moves the mean feature; zero if training did not put it back.
        prototypes: its classes in the mean of the modules up to it.
    """

    card: Card
    vector: Mapping[str, Tensor]
    head: Head
    reference: Head
    statistics: ClassStatistics
    drift: FeatureDrift
    shift: Tensor
    prototypes: ClassPrototypes

    @property
    def task(self) -> str:
        """Whose module it is."""
        return self.card.task

    def write(self, folder: Path) -> dict[str, Seen]:
        """Its files, into a new folder: card.json and vector, head, statistics, drift, prototypes (.safetensors).

        Returns:
            name -> what the file holds.
        """
        folder.mkdir(parents=True)
        reference = {f"reference.{key}": value for key, value in self.reference.tensors().items()}
        tensors = {
            "vector": self.vector,
            "head": {**self.head.tensors(), **reference, "shift": self.shift},
            "statistics": self.statistics.tensors(),
            "drift": self.drift.tensors(),
            "prototypes": self.prototypes.tensors(),
        }
        files = {
            f"{name}.safetensors": save(values, folder / f"{name}.safetensors") for name, values in tensors.items()
        }
        return {**files, "card.json": write_json(self.card.record(), folder / "card.json")}

    @classmethod
    def from_files(cls, read: Callable[[str], bytes], task: str) -> "Module":
        """The inverse of ``write``.

        Args:
            read: name of a file -> its bytes.
            task: whose module it is.

        Raises:
            ValueError, KeyError, TypeError, SafetensorError: they are not a module's, or do not fit each other.
        """

        def tensors(name: str) -> dict[str, Tensor]:
            data = read(f"{name}.safetensors")
            try:
                return parse_tensors(data)
            except (ValueError, SafetensorError) as error:
                raise ValueError(f"{name}.safetensors: {error}") from error

        head, statistics, drift, prototypes, vector = map(
            tensors, ("head", "statistics", "drift", "prototypes", "vector")
        )
        module = cls(
            card=Card.from_bytes(read("card.json"), task),
            vector=vector,
            head=Head.from_tensors(head),
            reference=Head(head["reference.weight"], head["reference.bias"]),
            statistics=ClassStatistics.from_tensors(statistics),
            drift=FeatureDrift.from_tensors(drift),
            shift=head["shift"],
            prototypes=ClassPrototypes.from_tensors(prototypes),
        )
        module.check_shapes()
        return module

    def check_shapes(self) -> None:
        """That all parts are of the same classes and feature width.

        Raises:
            ValueError: naming a part that is not, and both shapes.
        """
        c, d = len(self.card.classes), self.shift.numel()
        statistics, mixtures = self.statistics, self.statistics.mixtures
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "head.weight": (self.head.weight, (c, d)),
            "head.bias": (self.head.bias, (c,)),
            "reference.weight": (self.reference.weight, (c, d)),
            "reference.bias": (self.reference.bias, (c,)),
            "shift": (self.shift, (d,)),
            "statistics.centres": (statistics.centres, (c, d)),
            "statistics.scatter": (statistics.scatter, (d, d)),
            "drift.matrix": (self.drift.matrix, (d, d)),
            "drift.offset": (self.drift.offset, (d,)),
        }
        factors = {"statistics": statistics.factors}
        for name, seen in {"prototypes": self.prototypes, "prototypes.scaled": self.prototypes.scaled}.items():
            if seen is not None:
                expected[f"{name}.centres"] = seen.classes.centres, (c, d)
                expected[f"{name}.scatter"] = seen.classes.scatter, (d, d)
                for of, step in {"": seen.step, AGAIN: seen.again or seen.step}.items():
                    expected[f"{name}.{of}matrix"] = step.matrix, (d, d)
                    expected[f"{name}.{of}offset"] = step.offset, (d,)
                factors[name] = seen.classes.factors
        for name, own in factors.items():
            if own is not None:
                expected[f"{name}.factors"] = own, (c, own.shape[1] if own.ndim > 1 else 0, d)
        if mixtures is not None:
            k = mixtures.weights.shape[-1]
            for name, shape in {"weights": (c, k), "means": (c, k, d), "variances": (c, k, d)}.items():
                expected[f"statistics.{name}"] = mixtures.tensors()[name], shape
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, expected {shape} of {c} classes and {d} features")

    def own_head(self) -> Head:
        """The fine-tuned head for the features of the module alone."""
        return self.head.shifted(self.shift)

    def head_on(self, basis: Head, offset: Tensor) -> Head:
        """The fine-tuned head as a vector on another head of its classes: that + (head - reference).

        A module's head was trained from the reference heads known then. Those of a composition are all on one scale;
        what fine-tuning changed is added to them.

        Args:
            basis: head of the module's classes that was not fine-tuned.
            offset: (D,) how far from their place at theta0 the features lie for which it is.
        """
        moved = Head(self.head.weight - self.reference.weight, self.head.bias - self.reference.bias).shifted(offset)
        return replace(basis, weight=basis.weight + moved.weight, bias=basis.bias + moved.bias)

    def dense(self, adapter: Adapter, weights: Mapping[str, Tensor]) -> TaskVector:
        """The whole task vector; ``weights`` are those of theta0 by name."""
        return TaskVector({name: self.delta(name, adapter, theta0) for name, theta0 in weights.items()})

    def delta(self, name: str, adapter: Adapter, theta0: Tensor) -> Tensor:
        """Tau (O, I) of one weight, dense."""
        return adapter.delta(self.adapter_parameters(name, theta0), theta0)

    def adapter_parameters(self, name: str, theta0: Tensor) -> dict[str, Tensor]:
        """The adapter's parameters of one weight, where theta0's value of it is.

        Raises:
            InputError: the module has none of it.
        """
        if name not in self._by_weight:
            raise InputError(f"module {self.card.task!r} has no parameters of {name}: it was learned on other targets")
        return {parameter: value.to(theta0) for parameter, value in self._by_weight[name].items()}

    @cached_property
    def _by_weight(self) -> dict[str, dict[str, Tensor]]:
        """Weight name -> parameter -> tensor."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in self.vector.items():
            name, _, parameter = key.rpartition(".")
            found.setdefault(name, {})[parameter] = value
        return found
