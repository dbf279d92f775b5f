"""Heads: one for each task, linear or with squares. Convention: features (N, D), logits (N, C)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


def logits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    factors: Tensor | None,
    offsets: Tensor | None,
    expected: Tensor | None,
) -> Tensor:
    """(N, C): see ``Head``."""
    found = F.linear(x, weight, bias)
    if factors is None or offsets is None or expected is None:
        return found
    inside = F.linear(x, factors.flatten(0, 1)).view(-1, *offsets.shape) - offsets
    return found + (inside.square().sum(-1) - expected) / 2


@dataclass(frozen=True)
class Head:
    """A classifier: logits f W^T + b, and where a class has factors, + (|factors f - offset|^2 - expected) / 2.

    Args:
        weight: (C, D).
        bias: (C,).
        factors: (C, r, D); None of a linear head.
        offsets: (C, r); None of a linear head.
        expected: (C,), what is taken off the squares; None of a linear head.
    """

    weight: Tensor
    bias: Tensor
    factors: Tensor | None = None
    offsets: Tensor | None = None
    expected: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, D), in the head's own type: a network in float64 has heads in float32."""
        x = features.to(self.weight.dtype)
        return logits(x, self.weight, self.bias, self.factors, self.offsets, self.expected)

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, rows: slice) -> "Head":
        """The head of some classes."""
        return self._each(lambda tensor: tensor[rows].clone())

    def split(self, sizes: Sequence[int]) -> list["Head"]:
        """The heads of tasks of so many classes: the inverse of ``join``."""
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        return [
            self._each(lambda tensor, first=first, size=size: tensor[first : first + size])
            for first, size in zip(starts, sizes, strict=False)
        ]

    def to(self, device: torch.device) -> "Head":
        """A copy on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def linear(self) -> "Head":
        """Without the squares."""
        return Head(self.weight, self.bias)

    def shifted(self, offset: Tensor) -> "Head":
        """The head that says of features + offset (D,) what this one says of the features."""
        bias, offsets = self.bias - self.weight @ offset, self.offsets
        if self.factors is not None and offsets is not None:
            offsets = offsets + self.factors @ offset
        return replace(self, bias=bias, offsets=offsets)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Head":
        """The inverse of ``tensors``."""
        factors, offsets, expected = map(tensors.get, ("factors", "offsets", "expected"))
        if offsets is not None and expected is None:  # as composed models had it for a day
            expected = offsets.new_zeros(len(offsets))
        return cls(tensors["weight"], tensors["bias"], factors, offsets, expected)

    @classmethod
    def join(cls, heads: Sequence["Head"]) -> "Head":
        """The heads of several tasks as one over all their classes; all have factors of one rank, or none has any.

        Raises:
            ValueError: some have factors, and some have none.
        """
        parts = [head.tensors() for head in heads]
        if len({tuple(part) for part in parts}) > 1:
            raise ValueError("heads with squares and heads without cannot be joined")
        return cls(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Head":
        return Head(**{name: change(value) for name, value in self.tensors().items()})

    @classmethod
    def truncated_normal(cls, classes: int, width: int, generator: torch.Generator) -> "Head":
        """Of standard deviation 0.02, bias zero: where the paper's heads start."""
        weight = torch.nn.init.trunc_normal_(torch.empty(classes, width), std=0.02, generator=generator)
        return cls(weight, torch.zeros(classes))

    @classmethod
    def random(cls, classes: int, width: int, generator: torch.Generator) -> "Head":
        """Uniform in +-1/sqrt(D), bias zero."""
        weight = (torch.rand(classes, width, generator=generator) * 2 - 1) / math.sqrt(width)
        return cls(weight, torch.zeros(classes))
