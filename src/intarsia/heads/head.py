"""Linear heads: one for each task. Convention: features (N, D), logits (N, C)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Head:
    """A linear classifier: weight (C, D) and bias (C,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, D), in the head's own type: a network in float64 has heads in float32."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, rows: slice) -> "Head":
        """The head of some classes."""
        return Head(self.weight[rows].clone(), self.bias[rows].clone())

    def split(self, sizes: Sequence[int]) -> list["Head"]:
        """The heads of tasks of so many classes: the inverse of ``join``."""
        parts = zip(self.weight.split(list(sizes)), self.bias.split(list(sizes)), strict=True)
        return [Head(weight, bias) for weight, bias in parts]

    def to(self, device: torch.device) -> "Head":
        """A copy on another device."""
        return Head(self.weight.to(device), self.bias.to(device))

    def shifted(self, offset: Tensor) -> "Head":
        """The head that says of features + offset (D,) what this one says of the features."""
        return Head(self.weight, self.bias - self.weight @ offset)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Head":
        """The inverse of ``tensors``."""
        return cls(tensors["weight"], tensors["bias"])

    @classmethod
    def join(cls, heads: Sequence["Head"]) -> "Head":
        """The heads of several tasks as one over all their classes."""
        return cls(torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]))

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
