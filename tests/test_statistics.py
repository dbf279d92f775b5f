"""Class statistics: what is drawn has the mixture's moments, few images are enough."""

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.covariance import oas
from torch import Tensor

from cases import plain_statistics, randn, same, seeded
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.mixtures import ClassStatistics, fit_statistics, sample
from intarsia.class_stats.shrinkage import basis_of


def mixtures(classes: int = 2, components: int = 3, width: int = 4, seed: int = 0) -> ClassStatistics:
    """Random mixtures in float64; the last component of the last class is missing."""
    weights = randn(classes, components, seed=seed).square() + 0.2
    weights[-1, -1] = 0
    means, variances = (randn(classes, components, width, seed=seed + i) for i in (1, 2))
    mix = randn(width, width, seed=seed + 3) + torch.eye(width, dtype=torch.float64)
    weights, freedom = weights / weights.sum(1, keepdim=True), 65
    scatter = mix @ mix.T * freedom
    return ClassStatistics(weights, 2 * means, variances.square() + 0.1, scatter, freedom)


def moments(statistics: ClassStatistics) -> tuple[Tensor, Tensor]:
    """Mean (C, D) and covariance (C, D, D) of each class's mixture, in plain features."""
    w, m = statistics.weights, statistics.means
    mean = (w[..., None] * m).sum(1)
    square = torch.diag_embed((w[..., None] * statistics.variances).sum(1)) + torch.einsum("ck,cki,ckj->cij", w, m, m)
    within, basis = square - mean[:, :, None] * mean[:, None], statistics.basis
    return mean @ basis.T, basis @ within @ basis.T


def test_samples_have_the_moments_of_the_mixture() -> None:
    statistics, n = mixtures(), 20_000
    features, labels = sample([statistics], n, seeded(1))
    assert torch.equal(labels, torch.arange(2).repeat_interleave(n))
    mean, covariance = moments(statistics)
    away = features.reshape(2, n, -1) - mean[:, None]
    z = away.mean(1) / (covariance.diagonal(dim1=1, dim2=2) / n).sqrt()
    assert float(z.abs().max()) < 4
    products = away[..., :, None] * away[..., None, :]
    z = (products.mean(1) - covariance) / (products.std(1) / n**0.5)
    assert float(z.abs().max()) < 4


def test_samples_of_one_component_have_its_variance_not_its_root() -> None:
    single = plain_statistics(torch.ones(1, 1), torch.zeros(1, 1, 2), torch.tensor([[[100.0, 0.01]]]))
    features, _ = sample([single], 20_000, seeded(2))
    torch.testing.assert_close(features.var(0), torch.tensor([100.0, 0.01]), rtol=0.05, atol=0)


def test_samples_are_a_function_of_the_generator() -> None:
    draws = [sample([mixtures()], 5, seeded(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def clusters(count: int, width: int = 3, seed: int = 0) -> Tensor:
    """Single precision features of a class in two far clusters."""
    centre = torch.tensor([-8.0, 8.0])[torch.arange(count) % 2]
    return centre[:, None] + randn(count, width, seed=seed, dtype=torch.float32)


@pytest.mark.parametrize(("images", "components"), [(1, 1), (2, 1), (4, 1), (9, 1), (10, 2), (24, 4), (60, 5)])
def test_few_images_get_few_components(images: int, components: int) -> None:
    statistics = fit_statistics(clusters(images), torch.zeros(images, dtype=torch.long), 1, seed=0)
    assert statistics.weights.shape == (1, 5)
    assert int((statistics.weights > 0).sum()) == components
    assert float(statistics.weights.sum()) == pytest.approx(1)
    features, _ = sample([statistics], 50, seeded(0))
    assert bool(features.isfinite().all())
    mean, _ = moments(statistics)
    torch.testing.assert_close(mean[0], clusters(images).mean(0), rtol=1e-3, atol=1e-3)


def test_one_component_has_the_mean_of_the_class_and_the_variance_along_the_axes_of_its_basis() -> None:
    features = clusters(8)
    statistics = fit_statistics(features, torch.zeros(8, dtype=torch.long), 1, seed=0)
    torch.testing.assert_close(moments(statistics)[0][0], features.mean(0))
    inside = torch.linalg.solve_triangular(statistics.basis, features.T, upper=False).T
    torch.testing.assert_close(statistics.variances[0, 0], inside.var(0, unbiased=False) + 1e-4, rtol=1e-4, atol=1e-6)


def test_basis_is_that_of_the_covariance_within_classes() -> None:
    """Many correlated features of two far classes: covariance as drawn, whatever lies between the classes."""
    mix = randn(3, 3, seed=1, dtype=torch.float32) + torch.eye(3)
    features = randn(4000, 3, seed=2, dtype=torch.float32) @ mix.T
    labels = torch.arange(2).repeat_interleave(2000)
    statistics = fit_statistics(features + 50 * labels[:, None], labels, 2, seed=0)
    basis = statistics.basis
    torch.testing.assert_close(basis @ basis.T, mix @ mix.T, rtol=0.1, atol=0.1)
    torch.testing.assert_close(moments(statistics)[1][0], mix @ mix.T, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("count", [3, 8, 50, 2000])
def test_covariance_is_shrunk_as_scikit_learn_does(count: int) -> None:
    scales = torch.tensor([1.0, 20.0, 0.3, 5.0, 1.0], dtype=torch.float64)
    x = randn(count, 5, seed=4) @ (randn(5, 5, seed=5) + torch.eye(5, dtype=torch.float64)) * scales
    basis, scale = basis_of(x.T @ x, count), x.square().mean(0).sqrt()
    expected, _ = oas((x / scale).numpy(), assume_centered=True)
    got = basis @ basis.T / scale[:, None] / scale
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_covariance_of_several_tasks_is_that_of_their_residuals_together() -> None:
    tasks = [mixtures(2, seed=1), mixtures(2, seed=30)]
    together, classes = (
        basis_of(tasks[0].scatter + tasks[1].scatter, 130),
        Gaussians.join([t.gaussians() for t in tasks]),
    )
    torch.testing.assert_close(classes.covariance().dense(), together @ together.T)
    torch.testing.assert_close(classes.centres, torch.cat([moments(t)[0] for t in tasks]))


def test_fewer_images_than_features_can_be_drawn_from() -> None:
    features = randn(6, 20, seed=3, dtype=torch.float32)
    statistics = fit_statistics(features, torch.arange(2).repeat(3), 2, seed=0)
    drawn, _ = sample([statistics], 10, seeded(0))
    assert bool(drawn.isfinite().all())


def test_two_far_clusters_are_found() -> None:
    features = clusters(40)
    statistics = fit_statistics(features, torch.zeros(40, dtype=torch.long), 1, components=2, seed=0)
    means = statistics.means[0] @ statistics.basis.T
    torch.testing.assert_close(statistics.weights[0], torch.full((2,), 0.5))
    expected = torch.stack([features[0::2].mean(0), features[1::2].mean(0)])
    torch.testing.assert_close(means[means[:, 0].argsort()], expected, rtol=1e-4, atol=1e-4)


def test_classes_do_not_mix_and_a_fit_is_repeatable() -> None:
    features = torch.cat([clusters(12, seed=1), 100 + clusters(12, seed=2)])
    labels = torch.arange(2).repeat_interleave(12)
    shuffled = torch.randperm(24, generator=seeded(3))
    fits = [fit_statistics(features[i], labels[i], 2, seed=5) for i in (slice(None), slice(None), shuffled)]
    assert same(fits[0].tensors(), fits[1].tensors())
    for fit in fits:
        mean, _ = moments(fit)
        torch.testing.assert_close(mean[1] - mean[0], features[12:].mean(0) - features[:12].mean(0), rtol=1e-4, atol=0)


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="class 1 has no image"):
        fit_statistics(clusters(4), torch.zeros(4, dtype=torch.long), 2, seed=0)


def test_tensors_are_inverse() -> None:
    made = mixtures()
    assert same(ClassStatistics.from_tensors(made.tensors()).tensors(), made.tensors())


def test_samples_of_several_tasks_are_of_each_tasks_classes_in_turn() -> None:
    """Tasks of other numbers of components, each drawn in its own basis: the moments of every class."""
    tasks, n = [mixtures(1, 2, seed=1), mixtures(2, 4, seed=20)], 20_000
    features, labels = sample(tasks, n, seeded(0))
    assert torch.equal(labels, torch.arange(3).repeat_interleave(n))
    mean, covariance = (torch.cat(parts) for parts in zip(*map(moments, tasks), strict=True))
    away = features.reshape(3, n, -1) - mean[:, None]
    z = away.mean(1) / (covariance.diagonal(dim1=1, dim2=2) / n).sqrt()
    assert float(z.abs().max()) < 4


def test_a_basis_is_not_stored_and_comes_out_bit_equal_from_what_is() -> None:
    features, labels = randn(40, 12, seed=1, dtype=torch.float32), torch.arange(40) % 3
    made = fit_statistics(features, labels, 3, seed=0)
    assert "basis" not in made.tensors()
    again = ClassStatistics.from_tensors(safetensors.torch.load(safetensors.torch.save(made.tensors())))
    assert torch.equal(again.basis, made.basis)
    assert "basis" not in again.tensors()
    drawn = [sample([s], 5, seeded(0))[0] for s in (made, again)]
    assert torch.equal(*drawn)
