"""Statistics of features that no well-behaved network gives: nothing fails, nothing is blown up by rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cases import GREY, QUICK, backbone, randn, seeded, stream
from intarsia import TaskStream, learn
from intarsia.baselines.seed import ClassGaussian
from intarsia.class_stats.drift import fit_drift
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.mixtures import fit_mixtures
from intarsia.class_stats.prototypes import ClassPrototypes
from intarsia.class_stats.shrinkage import Covariance, basis_of
from intarsia.class_stats.statistics import ClassStatistics, sample
from intarsia.errors import DivergenceError
from intarsia.heads.discriminant import discriminant, initial_heads
from intarsia.heads.head import Head
from intarsia.heads.pretraining import pretune
from intarsia.heads.whitening import Whitening


@dataclass(frozen=True)
class Hard:
    """Features (N, D) in float32, and their labels (N,) in 0 .. classes - 1."""

    features: Tensor
    labels: Tensor
    classes: int


@st.composite
def hard(draw: st.DrawFn, smallest: float = 1e-20, largest: float = 1e20) -> Hard:
    """Constant and equal columns, equal rows, N < D, one image, any scale, a mean of 1e6 spreads."""
    classes, width = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    count = classes * draw(st.integers(1, 12))
    labels = torch.arange(count) % classes
    seed = draw(st.integers(0, 10**6))
    x = randn(count, width, seed=seed) + 3 * randn(classes, width, seed=seed + 1)[labels]
    for column in range(width):
        kind = draw(st.sampled_from(["plain", "constant", "copy", "zero", "by class", "rounding"]))
        if kind in ("constant", "rounding"):
            x[:, column] = 0.1
        elif kind == "copy":
            x[:, column] = x[:, 0] * draw(st.sampled_from([1.0, -1.0, 1e-4]))
        elif kind == "zero":
            x[:, column] = 0
        elif kind == "by class":
            x[:, column] = labels.double()
        if kind == "rounding":
            x[:, column] += randn(count, seed=seed + 2 + column).sign() * 1e-8  # a bit of float32, or none
    if draw(st.booleans()):
        x = x[:1].expand(count, -1) if draw(st.booleans()) else x[labels]
    x = x + draw(st.sampled_from([0.0, 1.0, 1e6]))
    x = x * draw(st.sampled_from([smallest, 1e-6, 1.0, 1e6, largest]))
    return Hard(x.float(), labels, classes)


def bounded(head: Head, given_: Hard, most: float) -> None:
    """A head is finite, and so are its logits, which do not depend on a feature's last bit by more than ``most``."""
    x = given_.features
    assert bool(head.weight.isfinite().all())
    assert bool(head.bias.isfinite().all())
    assert bool(head(x).isfinite().all())
    last_bit = (torch.nextafter(x, torch.full_like(x, torch.inf)) - x).double()
    assert float((last_bit.abs() @ head.weight.double().abs().T).max()) < most


@settings(max_examples=150)
@given(given_=hard())
def test_heads_of_any_features_are_finite_and_do_not_lean_on_rounding(given_: Hard) -> None:
    x, y, classes = given_.features, given_.labels, given_.classes
    start = Head(torch.zeros(classes, x.shape[1]), torch.zeros(classes))
    tuned = pretune(start, x, y, epochs=3, lr=0.1, batch_size=4, generator=seeded(0))
    bounded(tuned, given_, 1.0)
    bounded(discriminant(Gaussians.of(x, y, classes)), given_, 1e12)
    bounded(initial_heads(Gaussians.of(x, y, classes)), given_, 1e6)
    bounded(discriminant(Gaussians.of(x, y, classes, shrunken=True)), given_, 1e12)


@settings(max_examples=100)
@given(given_=hard())
def test_whitening_is_inverted_and_has_the_identity_at_most_as_covariance(given_: Hard) -> None:
    x, width = given_.features, given_.features.shape[1]
    whitening = Whitening.of(x)
    torch.testing.assert_close(
        whitening.unmix @ whitening.mix, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-6
    )
    white = whitening.features(x)[:, :-1].double()
    assert float(torch.linalg.eigvalsh(white.T @ white / len(x)).max()) < 1 + 1e-3
    assert float(white.mean(0).abs().max()) < 1e-2
    head = Head((randn(2, width, seed=3) / x.abs().max().double().clamp_min(1e-25)).float(), torch.zeros(2))
    torch.testing.assert_close(whitening.inward(head)(white.float()), head(x), rtol=1e-3, atol=1e-3)
    again = whitening.outward(whitening.inward(head))
    torch.testing.assert_close(again(x), head(x), rtol=1e-3, atol=1e-3)


@settings(max_examples=100)
@given(given_=hard(1e-15, 1e12))  # squares of features are kept in float32
def test_statistics_of_any_features_draw_their_classes_where_they_are(given_: Hard) -> None:
    x, y, classes = given_.features, given_.labels, given_.classes
    size = float(x.abs().max()) + 1e-30
    expected = torch.stack([x[y == c].double().mean(0) for c in range(classes)])
    for mixtures in (None, fit_mixtures(x, y, classes, seed=0)):
        statistics = ClassStatistics.of(x, y, classes, mixtures)
        for name, value in statistics.tensors().items():
            assert bool(value.isfinite().all()), name
        drawn, labels = sample([statistics], 20, seeded(0))
        assert bool(drawn.isfinite().all())
        assert len(labels) == 20 * classes
        centres = statistics.centres
        if mixtures is not None:
            centres = (mixtures.weights[..., None] * mixtures.means).sum(1)
        torch.testing.assert_close(centres.double() / size, expected / size, rtol=0, atol=1e-3)


@settings(max_examples=100)
@given(given_=hard(largest=1e15), seed=st.integers(0, 9))
def test_drifts_of_any_features_are_finite_and_small_where_nothing_moves(given_: Hard, seed: int) -> None:
    x = given_.features
    still = fit_drift(x, x)
    assert not still.matrix.any()
    assert not still.offset.any()
    moved = x + x.abs().max() * randn(1, x.shape[1], seed=seed).float()
    drift = fit_drift(x, moved)
    size = float(x.abs().max()) + 1e-30
    torch.testing.assert_close(drift(x) / size, moved / size, rtol=0, atol=1e-3)
    prototypes = ClassPrototypes.of(x, moved, given_.labels, given_.classes)
    assert all(bool(value.isfinite().all()) for value in prototypes.tensors().values())


@settings(max_examples=60)
@given(given_=hard())
def test_an_ensembles_gaussians_of_any_features_are_densities(given_: Hard) -> None:
    gaussian = ClassGaussian.of(given_.features)
    assert bool(gaussian.log_density(given_.features).isfinite().all())
    assert gaussian.divergence(gaussian) == pytest.approx(0, abs=1e-6)


@settings(max_examples=100)
@given(width=st.integers(1, 8), rank=st.integers(0, 8), freedom=st.integers(0, 10**9), exponent=st.integers(-40, 40))
def test_a_shrunk_covariance_is_its_root_squared_and_solved_with(
    width: int, rank: int, freedom: int, exponent: int
) -> None:
    root = randn(width, rank, seed=width + rank) * 10.0**exponent
    assume(width > 0)
    covariance = Covariance.shrunk(root @ root.T, freedom)
    basis, dense, scale = covariance.basis(), covariance.dense(), covariance.scale
    assert not basis.triu(1).any()
    assert float(basis.diagonal().min()) > 0
    torch.testing.assert_close(basis @ basis.T / scale / scale[:, None], dense / scale / scale[:, None])
    right = randn(width, 2, seed=9) * scale[:, None]
    torch.testing.assert_close(
        dense @ covariance.solve(right) / scale[:, None], right / scale[:, None], rtol=1e-6, atol=1e-6
    )
    ridged = dense + 0.1 * torch.diag(dense.diagonal())
    torch.testing.assert_close(
        ridged @ covariance.solve(right, 0.1) / scale[:, None], right / scale[:, None], rtol=1e-6, atol=1e-5
    )


def test_a_scatter_that_float32_rounded_to_an_indefinite_matrix_has_a_basis() -> None:
    """Collinear features of many images, kept in float32: Cholesky fails on it."""
    x = randn(5000, 3, seed=1) @ randn(3, 300, seed=2)
    scatter = (x.T @ x).float()
    assert float(torch.linalg.eigvalsh(scatter.double()).min()) < 0
    basis = basis_of(scatter, 5000 * 10**6)
    assert bool(basis.isfinite().all())
    assert float(basis.diagonal().min()) > 0


def unfit(x: Tensor) -> list[Callable[[], object]]:
    y = torch.arange(len(x)) % 2
    zero = Head(torch.zeros(2, x.shape[1]), torch.zeros(2))
    return [
        lambda: Whitening.of(x),
        lambda: pretune(zero, x, y, epochs=1, lr=0.1, batch_size=4, generator=seeded(0)),
        lambda: discriminant(Gaussians.of(x, y, 2)),
        lambda: fit_drift(x, x),
        lambda: fit_drift(torch.zeros_like(x), x),
        lambda: ClassStatistics.of(x, y, 2),
        lambda: fit_mixtures(x, y, 2, seed=0),
        lambda: ClassGaussian.of(x),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(8))
def test_features_that_are_not_finite_are_named(value: float, which: int) -> None:
    x = randn(8, 4, seed=0).float()
    x[3, 2] = value
    with pytest.raises(DivergenceError, match=r"not finite"):
        unfit(x)[which]()


@pytest.mark.parametrize("size", [float("inf"), 1e20])
def test_a_task_whose_features_leave_float32_is_named_and_nothing_is_left(size: float, tmp_path: Path) -> None:
    theta0 = backbone()
    with torch.no_grad():
        theta0.model.get_parameter("norm.bias").fill_(size)
    with pytest.raises(DivergenceError, match=r"task 'task01': .*features of 12 of its 12 images are not finite, or"):
        learn(theta0, stream(), out=tmp_path / "p", training=QUICK)
    assert not (tmp_path / "p").exists()


def test_tasks_whose_images_are_alike_are_learned(tmp_path: Path) -> None:
    """Whitening, statistics and drifts have no variance within a class to divide by."""
    labels = torch.arange(4).repeat_interleave(3)
    drawn = (labels * 60).byte()[:, None, None].expand(-1, 8, 8).contiguous()
    data = TaskStream.from_arrays((drawn, labels), (drawn, labels), [f"class{i}" for i in range(4)], tasks=2)
    pool = learn(backbone(), data, out=tmp_path / "p", training=QUICK)
    assert bool(pool.mean().logits(data[0].test.tensor(GREY)).isfinite().all())
