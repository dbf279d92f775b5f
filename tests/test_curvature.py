"""The open seam for curvatures: what each of the table promises."""

import pytest
import torch
from torch import Tensor

from cases import head, inputs, newton, positive, randn, repeated, same, seeded, split_backbone, vectors
from intarsia.curvature import CURVATURES, STORED, Curvature, Metric
from intarsia.curvature.fisher import DiagonalFisher, DiagonalMetric
from intarsia.task_vector import TaskVector

each_curvature = pytest.mark.parametrize("name", CURVATURES)


def estimated(name: str, count: int = 6, seed: int = 0, like: Curvature | None = None) -> Curvature:
    return CURVATURES[name](split_backbone(), head(3, 8), [inputs(count, seed)], generator=seeded(seed), like=like)


def taus(seed: int) -> TaskVector:
    return vectors(1, seed, {n: (w.shape[0], w.shape[1]) for n, w in split_backbone().trainable.items()})[0]


@each_curvature
def test_a_curvature_keeps_its_protocol(name: str) -> None:
    one = estimated(name, 6)
    other = estimated(name, 3, seed=5, like=one)
    assert isinstance(one, Curvature)
    assert type(one) is STORED[one.kind]
    assert one.kind == name
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
