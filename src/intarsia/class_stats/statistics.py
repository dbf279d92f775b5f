"""Class statistics: what stands in for the images of a task's classes once those are gone.

The classes are Gaussians at theta0 that share the covariance within the task's classes (docs/method.md section 3).
Heads are made from them, and the head's Fisher is taken on features drawn from them. The paper protocol draws from
mixtures in place of them. Convention: C classes, D feature width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from intarsia.class_stats.gaussians import Gaussians, spread_out
from intarsia.class_stats.mixtures import Mixtures
from intarsia.class_stats.shrinkage import basis_of
from intarsia.numerics import check_finite

PER_CLASS = 256
"""Features drawn of every class."""
MOST = 100 * PER_CLASS
"""Features drawn of all classes together; the paper protocol draws ``PER_CLASS`` of any number of classes."""


@dataclass(frozen=True)
class ClassStatistics:
    """The classes of one task at theta0.

    Args:
        centres: (C, D), the mean of every class.
        scatter: (D, D), sum over the task's images of (f - class mean)(f - class mean)^T.
        freedom: images less classes: scatter / freedom is the covariance within classes.
        factors: (C, r, D) of each class's own covariance (see ``Gaussians``); None in pools of before there were any.
        mixtures: of the same classes, in the paper protocol.
    """

    centres: Tensor
    scatter: Tensor
    freedom: int
    mixtures: Mixtures | None = None
    factors: Tensor | None = None

    @classmethod
    def of(
        cls,
        features: Tensor,
        labels: Tensor,
        classes: int,
        mixtures: Mixtures | None = None,
        *,
        shrunken: bool = False,
    ) -> "ClassStatistics":
        """Of features (N, D) at theta0 with labels (N,) in 0 .. classes - 1, in the features' type.

        ``shrunken``: see ``Gaussians.of``.

        Raises:
            ValueError: a class has no image.
            DivergenceError: a feature is not finite.
        """
        if len(missing := set(range(classes)) - set(labels.tolist())):
            raise ValueError(f"class {min(missing)} has no image to take statistics from")
        check_finite(features, "features")
        found = Gaussians.of(features, labels, classes, shrunken=shrunken).to(features.dtype)
        return cls(found.centres, found.scatter, found.freedom, mixtures, found.factors)

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def basis(self) -> Tensor:
        """(D, D), lower triangular: ``basis_of`` the scatter; features = centre + basis @ noise. It is not stored."""
        return basis_of(*spread_out(self.centres, self.scatter, self.freedom))

    def gaussians(self) -> Gaussians:
        """The classes, in double precision."""
        return self._as_kept().double()

    def shared(self) -> "ClassStatistics":
        """Without what each class has of its own: enough for draws, and for heads to start from."""
        return replace(self, factors=None)

    def _as_kept(self) -> Gaussians:
        return Gaussians(self.centres, self.scatter, self.freedom, self.factors)

    def sample(self, per_class: int, generator: torch.Generator) -> Tensor:
        """(C * per_class, D), class by class: of the mixtures where there are any, else of the Gaussians."""
        if self.mixtures is not None:
            return self.mixtures.sample(per_class, generator)
        noise = torch.randn(len(self) * per_class, len(self.scatter), generator=generator, dtype=self.centres.dtype)
        return (noise @ self.basis.T).add_(self.centres.repeat_interleave(per_class, 0))

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {**self._as_kept().tensors(), **({} if self.mixtures is None else self.mixtures.tensors())}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ClassStatistics":
        """The inverse of ``tensors``."""
        mixtures = Mixtures.from_tensors(tensors) if "weights" in tensors else None
        found = Gaussians.from_tensors(tensors)
        return cls(found.centres, found.scatter, found.freedom, mixtures, found.factors)


@dataclass(frozen=True)
class SeenClasses:
    """The classes of all tasks so far, as they are carried from task to task.

    Args:
        tasks: their statistics, task by task, without what each class has of its own.
        joined: all of them as Gaussians, in double precision; None if they have not been joined yet.
    """

    tasks: tuple[ClassStatistics, ...] = ()
    joined: Gaussians | None = None

    def with_task(self, own: ClassStatistics) -> "SeenClasses":
        """And those of one more task. It is added to the sum of all before, so it costs the same however many."""
        own = own.shared()
        known, new = ((), self.tasks) if self.joined is None else ((self.joined,), ())
        joined = Gaussians.join(chain(known, (task.gaussians() for task in (*new, own))))
        return SeenClasses((*self.tasks, own), joined)


def sample(tasks: Sequence[ClassStatistics], per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw features (C * per_class, D) and their labels (C * per_class,), task by task and class by class.

    Args:
        tasks: one and more; C is the number of their classes together.
        per_class: features of each class.
        generator: of the draws.
    """
    drawn = torch.cat([task.sample(per_class, generator) for task in tasks])
    return drawn, torch.arange(sum(map(len, tasks))).repeat_interleave(per_class)


def per_class(classes: int) -> int:
    """How many features of each of so many classes are drawn: ``PER_CLASS``, and fewer beyond 100 classes."""
    return max(1, min(PER_CLASS, MOST // classes))
