"""LoRA: tau = B A, a low-rank update (Hu et al., arXiv 2106.09685).

A is (r, I), uniform within 1/sqrt(I); B is (O, r), zero at the start; the scale is 1 and there is no dropout. A fused
``qkv`` holds three weights in one and gets three times the rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from intarsia.adapters.protocol import AdaptedLinear, Form, Parameters
from intarsia.errors import InputError
from intarsia.numerics import wide

ROWS = 128
"""Rows of a weight solved for at a time on a CPU: their systems stay in its cache. A card takes all at once."""

LIFT = 2.0**-50
"""Share, times r^2, by which the diagonals of these systems are lifted: Cholesky then succeeds on any that rounding has
made indefinite, as the Fisher's largest entries times a large strength do. An eigendecomposition per row costs more."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates.

    Args:
        rank: r of every weight; 3 r on a fused qkv. At most min(O, I) is used.
        narrow: A starts within 1/sqrt(r I), as the paper's (r as used), not 1/sqrt(I). Of the start alone: it is
            neither compared nor recorded.

    Raises:
        InputError: the rank is below 1.
    """

    rank: int = 16
    narrow: bool = field(default=False, compare=False, repr=False)
    kind: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"LoRA rank {self.rank}: expected 1 or more; 16 is the paper's")

    def initial(self, name: str, theta0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A (r, I) uniform, drawn on the CPU; B (O, r) zero."""
        out_features, in_features = theta0.shape
        wanted = 3 * self.rank if name.removesuffix(".weight").endswith("qkv") else self.rank
        rank = min(wanted, out_features, in_features)
        bound = 1 / math.sqrt(in_features * (rank if self.narrow else 1))
        a = (torch.rand(rank, in_features, generator=generator) * 2 - 1) * bound
        return {"A": a.to(theta0), "B": theta0.new_zeros(out_features, rank)}

    def delta(self, parameters: Parameters, theta0: Tensor) -> Tensor:
        """B A."""
        return parameters["B"] @ parameters["A"]

    def combined(self, modules: Sequence[Parameters], weights: Sequence[float], theta0: Tensor) -> Tensor:
        """[w_1 B_1 ... w_T B_T] [A_1; ...; A_T]: one product however many there are."""
        b = torch.cat([parameters["B"] * w for parameters, w in zip(modules, weights, strict=True)], 1)
        return b @ torch.cat([parameters["A"] for parameters in modules])

    def nearest(self, parameters: Parameters, theta0: Tensor, tau: Tensor) -> dict[str, Tensor]:
        """Tau cut to its r largest singular values; the rows of A are as long as before, B has the rest.

        Its singular vectors are eigenvectors of the smaller of tau tau^T and tau^T tau: a third of an SVD's cost.
        """
        dense, rank, length = wide(tau), len(parameters["A"]), wide(parameters["A"]).norm(dim=1).mean()
        scale = dense.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        dense = dense / scale  # its squares are kept from under- and overflow
        if dense.shape[0] >= dense.shape[1]:
            rows = torch.linalg.eigh(dense.T @ dense).eigenvectors[:, -rank:].T  # (r, I), orthonormal
        else:
            columns = torch.linalg.eigh(dense @ dense.T).eigenvectors[:, -rank:]
            rows = torch.linalg.qr(dense.T @ columns).Q.T
        a, b = rows * length, dense @ rows.T * (scale / length)
        return {"A": a.to(tau), "B": b.to(tau)}

    def base(self, theta0: Tensor, shift: Tensor) -> Tensor:
        """A dense (O, I) weight: earlier low-rank updates are merged, so their number costs nothing."""
        return theta0 + shift

    def forward(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """W x + b + scale B (A x): never a dense update."""
        parameters = layer.adapter_parameters
        return _LowRank.apply(x, layer.base, layer.linear.bias, parameters["A"], parameters["B"] * layer.scale)  # pyright: ignore

    def weight(self, layer: AdaptedLinear) -> Tensor:
        """W + scale B A."""
        return torch.add(layer.base, layer.delta(), alpha=layer.scale)

    def proximal(self, parameters: Parameters, theta0: Tensor, curvature: Tensor, pull: Tensor) -> dict[str, Tensor]:
        """With A fixed each row of B is a system of its own: (I + A diag(c_i) A^T) b_i = b_i,old + A d_i."""
        a, b = wide(parameters["A"]), wide(parameters["B"])
        return {"B": _solved(a, b + wide(pull) @ a.T, curvature).to(parameters["B"])}

    def proximal_in(
        self, parameters: Parameters, theta0: Tensor, form: Form, held: float, pull: Tensor
    ) -> dict[str, Tensor]:
        """The same in the form's bases, where B is left^T B and A is A right."""
        a, b, left = wide(parameters["A"]), wide(parameters["B"]), wide(form.left)
        right = left.T @ (b + wide(pull) @ a.T)
        return {"B": (left @ _solved(a @ wide(form.right), right, held * form.diagonal)).to(parameters["B"])}


def _solved(a: Tensor, right: Tensor, curvature: Tensor) -> Tensor:
    """Rows b_i of (I + A diag(c_i) A^T) b_i = right_i, for A (r, I), c and right (O, ...), in float64.

    Float32 is too coarse at the Fisher's largest entries.
    """
    rank = len(a)
    row, column = torch.tril_indices(rank, rank, device=a.device)
    lower = row * rank + column
    products = (a[row] * a[column]).T.contiguous()  # (I, r (r + 1) / 2): the lower half is all Cholesky reads
    solved: list[Tensor] = []
    part = len(right) if right.is_cuda else ROWS
    for c, wanted in zip(curvature.split(part), right.split(part), strict=True):
        gram = a.new_zeros(len(c), rank, rank)
        gram.flatten(1)[:, lower] = wide(c) @ products
        gram.diagonal(dim1=-2, dim2=-1).add_(1.0).mul_(1 + LIFT * rank * rank)
        factor, _ = torch.linalg.cholesky_ex(gram)  # only NaN fails, and shows in the loss
        # in two: many systems at once by cholesky_solve wait for a card
        half = torch.linalg.solve_triangular(factor, wanted.unsqueeze(-1), upper=False)
        solved.append(torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(-1))
    return torch.cat(solved)


class _LowRank(torch.autograd.Function):
    """x (..., I) -> x W^T + b + (x A^T) B^T: both products into one tensor, forward and backward.

    Autograd would keep and add up two tensors of the output's size and two of the input's: a third of a step's time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):  # which casts operands op by op, but not those of addmm_
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, a, b = (tensor.to(kind) for tensor in (x, weight, a, b))
            bias = None if bias is None else bias.to(kind)
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        ctx.save_for_backward(rows, low, weight, a, b)
        out = F.linear(rows, weight, bias).addmm_(low, b.T)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        rows, low, weight, a, b = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        g_low = g @ b
        back = (g @ weight).addmm_(g_low, a).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return back, None, None, g_low.T @ rows, g.T @ low
