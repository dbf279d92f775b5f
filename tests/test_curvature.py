"""The open seam for curvatures: what the diagonal Fisher promises, and a Kronecker-factored one written against it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from cases import head, inputs, newton, positive, randn, repeated, same, seeded, split_backbone, vectors
from intarsia import Backbone
from intarsia.curvature import CURVATURES, Curvature, Estimate, Metric
from intarsia.curvature.estimators import Estimator
from intarsia.curvature.fisher import DiagonalFisher, DiagonalMetric
from intarsia.curvature.taps import pull_back
from intarsia.numerics import Precision
from intarsia.task_vector import TaskVector

# A Kronecker-factored curvature (K-FAC, Martens and Grosse, arXiv 1503.05671): F_n tau = G tau A / N


@dataclass(frozen=True)
class KroneckerMetric:
    """By weight name G (O, O) and A (I, I); a floor on the diagonal."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    floor: float

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * torch.stack([(self.gradient(n, vector[n]) * vector[n]).sum() for n in self.factors]).sum()

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        g, a = self.factors[name]
        return g @ tau @ a + self.floor * tau

    def quadratic(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        g, a = (factor.abs().sum(1) for factor in self.factors[name])  # Gershgorin's bound
        c = g[:, None] * a + self.floor
        return c, c * tau - self.gradient(name, tau)


@dataclass(frozen=True)
class KroneckerFisher:
    """Sums over images, and over tokens within them, of g g^T and a a^T; the second is averaged."""

    sums: Mapping[str, Tensor]
    count: int

    def __add__(self, other: Self) -> Self:
        return type(self)({n: x + other.sums[n] for n, x in self.sums.items()}, self.count + other.count)

    def __sub__(self, other: Self) -> Self:
        return type(self)({n: x - other.sums[n] for n, x in self.sums.items()}, self.count - other.count)

    def to(self, device: torch.device) -> Self:
        return type(self)({n: x.to(device) for n, x in self.sums.items()}, self.count)

    def mean(self, floor: float = 1e-5, *, unit: bool = False) -> KroneckerMetric:
        names = {n.removesuffix(".A") for n in self.sums if n.endswith(".A")}
        return KroneckerMetric(
            {n: (self.sums[f"{n}.G"] / self.count, self.sums[f"{n}.A"] / self.count) for n in names}, floor
        )

    def tensors(self) -> Mapping[str, Tensor]:
        return self.sums

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], count: int) -> Self:
        return cls(tensors, count)


def kronecker_fisher(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    *,
    estimator: Estimator = "rademacher",
    probes: int = 1,
    generator: torch.Generator | None = None,
    precision: Precision = "fp32",
) -> KroneckerFisher:
    sums: dict[str, Tensor] = {}
    count = 0
    for images in batches:

        def factors(name: str, a: Tensor, g: Tensor) -> None:
            for key, x in ((f"{name}.A", a / a.shape[1] ** 0.5), (f"{name}.G", g)):
                sums[key] = sums.get(key, torch.zeros(())) + torch.einsum("bni,bnj->ij", x, x)

        how: dict[str, Any] = {"estimator": estimator, "probes": probes, "generator": generator, "precision": precision}
        pull_back(backbone, head, images, factors, **how)
        count += len(images)
    return KroneckerFisher(sums, count)


ESTIMATES: dict[str, Estimate] = {**CURVATURES, "kronecker": kronecker_fisher}
each_curvature = pytest.mark.parametrize("name", ESTIMATES)


def estimated(name: str, count: int = 6, seed: int = 0) -> Curvature:
    return ESTIMATES[name](split_backbone(), head(3, 8), [inputs(count, seed)], generator=seeded(seed))


def taus(seed: int) -> TaskVector:
    return vectors(1, seed, {n: (w.shape[0], w.shape[1]) for n, w in split_backbone().trainable.items()})[0]


@each_curvature
def test_a_curvature_keeps_its_protocol(name: str) -> None:
    one, other = estimated(name, 6), estimated(name, 3, seed=5)
    assert isinstance(one, Curvature)
    assert isinstance(one.mean(), Metric)
    both = one + other
    assert both.count == 9
    assert (both - other).count == 6
    torch.testing.assert_close(dict((both - other).tensors()), dict(one.tensors()))
    again = type(one).from_tensors(one.to(torch.device("cpu")).tensors(), one.count)
    assert same(again.tensors(), one.tensors())


@each_curvature
def test_the_gradient_of_a_metric_is_that_of_its_value_and_linear(name: str) -> None:
    metric, tau, other = estimated(name).mean(1e-3), taus(1), taus(2)
    leaves = {n: t.clone().requires_grad_() for n, t in tau.items()}
    expected = torch.autograd.grad(metric.value(leaves), list(leaves.values()))
    for n, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(metric.gradient(n, tau[n]), gradient)
        both = metric.gradient(n, tau[n] - 2 * other[n])
        torch.testing.assert_close(both, metric.gradient(n, tau[n]) - 2 * metric.gradient(n, other[n]))
    assert float(metric.value(tau)) > 0


@each_curvature
def test_the_quadratic_touches_a_metric_and_lies_nowhere_below_it(name: str) -> None:
    """So that a step on it, at any strength, never raises |tau - old|^2 / 2 + s |tau|_F^2 / 2."""
    metric, old = estimated(name).mean(1e-3), taus(1)
    n = next(iter(old))
    only = {m: torch.zeros_like(t) for m, t in old.items()}
    c, d = metric.quadratic(n, old[n])

    def above(x: Tensor) -> float:
        return float((c * x * x / 2 - d * x).sum() - (c * old[n] * old[n] / 2 - d * old[n]).sum())

    for seed in range(5):
        x = old[n] + randn(*old[n].shape, seed=seed)
        change = float(metric.value({**only, n: x}) - metric.value({**only, n: old[n]}))
        assert above(x) >= change - 1e-9 * abs(change)
    for strength in (1.0, 1e6):
        stepped = (old[n] + strength * d) / (1 + strength * c)
        moved = float((stepped - old[n]).square().sum()) / 2
        value = strength * float(metric.value({**only, n: stepped})) + moved
        assert value <= strength * float(metric.value({**only, n: old[n]})) * (1 + 1e-9)


def test_a_diagonal_is_its_own_bound_so_that_the_proximal_step_is_exact() -> None:
    metric = DiagonalMetric(positive({"a": torch.zeros(3, 4, dtype=torch.float64)}, 1))
    old = randn(3, 4, seed=2)
    c, d = metric.quadratic("a", old)
    expected = newton(lambda x: 0.5 * (x - old).square().sum() + 7 * metric.value({"a": x}), old)
    torch.testing.assert_close((old + 7 * d) / (1 + 7 * c), expected)


def test_the_table_has_the_diagonal_fisher() -> None:
    made = CURVATURES["diagonal"](repeated("called twice"), head(3, 8), [inputs(2)], generator=seeded(0))
    assert isinstance(made, DiagonalFisher)
    assert made.count == 2
