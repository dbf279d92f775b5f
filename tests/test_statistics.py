"""Class statistics: what is drawn has the classes' moments, few images are enough."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.covariance import oas
from torch import Tensor

from cases import plain_statistics, randn, same, seeded
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.mixtures import FLOOR, Mixtures, fit_mixtures
from intarsia.class_stats.shrinkage import basis_of
from intarsia.class_stats.statistics import ClassStatistics, SeenClasses, per_class, sample


def statistics(classes: int = 2, width: int = 4, seed: int = 0, mixtures: Mixtures | None = None) -> ClassStatistics:
    """Random classes with one covariance, in float64."""
    mix = randn(width, width, seed=seed + 3) + torch.eye(width, dtype=torch.float64)
    return ClassStatistics(2 * randn(classes, width, seed=seed), mix @ mix.T * 65, 65, mixtures)


def mixtures(classes: int = 2, components: int = 3, width: int = 4, seed: int = 0) -> Mixtures:
    """Random mixtures in float64; the last component of the last class is missing."""
    weights = randn(classes, components, seed=seed).square() + 0.2
    weights[-1, -1] = 0
    means, variances = (randn(classes, components, width, seed=seed + i) for i in (1, 2))
    return Mixtures(weights / weights.sum(1, keepdim=True), 2 * means, variances.square() + 0.1)


def moments(of: ClassStatistics) -> tuple[Tensor, Tensor]:
    """Mean (C, D) and covariance (C, D, D) of each class as it is drawn."""
    if of.mixtures is None:
        return of.centres, (of.basis @ of.basis.T).expand(len(of), -1, -1)
    w, m = of.mixtures.weights, of.mixtures.means
    mean = (w[..., None] * m).sum(1)
    square = torch.diag_embed((w[..., None] * of.mixtures.variances).sum(1)) + torch.einsum("ck,cki,ckj->cij", w, m, m)
    return mean, square - mean[:, :, None] * mean[:, None]


@pytest.mark.parametrize("of", [statistics(), statistics(mixtures=mixtures())], ids=["gaussians", "mixtures"])
def test_samples_have_the_moments_of_their_classes(of: ClassStatistics) -> None:
    n = 20_000
    features, labels = sample([of], n, seeded(1))
    assert torch.equal(labels, torch.arange(2).repeat_interleave(n))
    mean, covariance = moments(of)
    away = features.reshape(2, n, -1) - mean[:, None]
    z = away.mean(1) / (covariance.diagonal(dim1=1, dim2=2) / n).sqrt()
    assert float(z.abs().max()) < 4
    products = away[..., :, None] * away[..., None, :]
    z = (products.mean(1) - covariance) / (products.std(1) / n**0.5)
    assert float(z.abs().max()) < 4


def test_samples_have_the_variance_not_its_root() -> None:
    variances = torch.tensor([100.0, 0.01])
    single = Mixtures(torch.ones(1, 1), torch.zeros(1, 1, 2), variances.expand(1, 1, 2))
    for of in (plain_statistics(torch.zeros(1, 2), variances), single):
        features = of.sample(20_000, seeded(2))
        torch.testing.assert_close(features.var(0), variances, rtol=0.05, atol=0)


@pytest.mark.parametrize("of", [statistics(), statistics(mixtures=mixtures())], ids=["gaussians", "mixtures"])
def test_samples_are_a_function_of_the_generator(of: ClassStatistics) -> None:
    draws = [sample([of], 5, seeded(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_beyond_a_hundred_classes_fewer_features_of_each_are_drawn() -> None:
    assert [per_class(c) for c in (1, 100, 200, 1000, 10**6)] == [256, 256, 128, 25, 1]


def clusters(count: int, width: int = 3, seed: int = 0) -> Tensor:
    """Single precision features of a class in two far clusters."""
    centre = torch.tensor([-8.0, 8.0])[torch.arange(count) % 2]
    return centre[:, None] + randn(count, width, seed=seed, dtype=torch.float32)


def fitted(features: Tensor, labels: Tensor, classes: int) -> ClassStatistics:
    """With mixtures."""
    return ClassStatistics.of(features, labels, classes, fit_mixtures(features, labels, classes, seed=0))


@pytest.mark.parametrize(("images", "components"), [(1, 1), (2, 1), (4, 1), (9, 1), (10, 2), (24, 4), (60, 5)])
def test_few_images_get_few_components(images: int, components: int) -> None:
    made = fitted(clusters(images), torch.zeros(images, dtype=torch.long), 1)
    assert made.mixtures is not None
    assert made.mixtures.weights.shape == (1, 5)
    assert int((made.mixtures.weights > 0).sum()) == components
    assert float(made.mixtures.weights.sum()) == pytest.approx(1)
    features, _ = sample([made], 50, seeded(0))
    assert bool(features.isfinite().all())
    mean, _ = moments(made)
    torch.testing.assert_close(mean[0], clusters(images).mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_one_component_has_the_mean_of_the_class_and_the_variance_along_the_features_axes(scale: float) -> None:
    """In plain features, whatever their scale: the floor of the variances is a share of their mean."""
    features = scale * clusters(8)
    made = fit_mixtures(features, torch.zeros(8, dtype=torch.long), 1, seed=0)
    torch.testing.assert_close(made.means[0, 0] / scale, features.mean(0) / scale)
    variance = features.var(0, unbiased=False)
    expected = variance + FLOOR * variance.mean()
    torch.testing.assert_close(made.variances[0, 0] / scale**2, expected / scale**2, rtol=1e-4, atol=1e-6)


def test_gaussians_have_the_classes_means_and_the_covariance_within_them() -> None:
    """Many correlated features of two far classes: covariance as drawn, whatever lies between the classes."""
    mix = randn(3, 3, seed=1, dtype=torch.float32) + torch.eye(3)
    features = randn(4000, 3, seed=2, dtype=torch.float32) @ mix.T
    labels = torch.arange(2).repeat_interleave(2000)
    features = features + 50 * labels[:, None]
    made = ClassStatistics.of(features, labels, 2)
    assert made.mixtures is None
    assert (made.freedom, len(made)) == (3998, 2)
    torch.testing.assert_close(made.centres, torch.stack([features[:2000].mean(0), features[2000:].mean(0)]))
    torch.testing.assert_close(made.basis @ made.basis.T, mix @ mix.T, rtol=0.1, atol=0.1)
    assert same(
        {"centres": made.gaussians().centres, "scatter": made.gaussians().scatter},
        {"centres": made.centres.double(), "scatter": made.scatter.double()},
    )


@pytest.mark.parametrize("count", [3, 8, 50, 2000])
def test_covariance_is_shrunk_as_scikit_learn_does(count: int) -> None:
    scales = torch.tensor([1.0, 20.0, 0.3, 5.0, 1.0], dtype=torch.float64)
    x = randn(count, 5, seed=4) @ (randn(5, 5, seed=5) + torch.eye(5, dtype=torch.float64)) * scales
    basis, scale = basis_of(x.T @ x, count), x.square().mean(0).sqrt()
    expected, _ = oas((x / scale).numpy(), assume_centered=True)
    got = basis @ basis.T / scale[:, None] / scale
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_covariance_of_several_tasks_is_that_of_their_residuals_together() -> None:
    tasks = [statistics(2, seed=1), statistics(2, seed=30)]
    together = basis_of(tasks[0].scatter + tasks[1].scatter, 130)
    classes = Gaussians.join([t.gaussians() for t in tasks])
    torch.testing.assert_close(classes.covariance().dense(), together @ together.T)
    torch.testing.assert_close(classes.centres, torch.cat([t.centres for t in tasks]))


def test_classes_seen_task_by_task_are_to_the_bit_all_tasks_joined() -> None:
    """Whether every task is added to those before, or a run goes on with tasks that it has not yet joined."""
    tasks = [replace(statistics(2, seed=10 * i), factors=randn(2, 3, 4, seed=i)) for i in range(4)]
    seen = SeenClasses()
    for number, task in enumerate(tasks, 1):
        seen = seen.with_task(task)
        gone_on = SeenClasses(seen.tasks[:-1]).with_task(task)
        expected = Gaussians.join([t.shared().gaussians() for t in tasks[:number]])
        for found in (seen.joined, gone_on.joined):
            assert found is not None
            assert found.factors is None
            assert same(found.tensors(), expected.tensors())
    assert len(seen.tasks) == 4
    with pytest.raises(ValueError, match="no classes to join"):
        Gaussians.join([])


def test_shrunken_means_by_hand() -> None:
    """Two features, one of them constant. Of the other the variance is 6/4 within classes, 18 between their means."""
    features = torch.tensor([[2.0, 5], [4, 5], [2, 5], [4, 5], [-4, 5], [-2, 5]], dtype=torch.float64)
    features[:, 0] *= 10  # whatever its scale
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    plain, made = Gaussians.of(features, labels, 2), Gaussians.of(features, labels, 2, shrunken=True)
    within = 6 / 4
    k = within / (18 - within * (1 / 4 + 1 / 2) / 2)
    assert made.centres[:, 0].tolist() == pytest.approx([30 * 4 / (4 + k), -30 * 2 / (2 + k)])
    assert made.centres[:, 1].tolist() == [5, 5]
    assert torch.equal(made.scatter, plain.scatter)


def test_shrunken_means_of_few_images_lie_nearer_to_the_true_ones() -> None:
    """Ten classes of 80 and 2 images in 40 features; those of many stay within a hundredth where they were."""
    counts = torch.tensor([80, 2]).repeat(5)
    labels = torch.arange(10).repeat_interleave(counts)
    true = randn(10, 40, seed=1) / 2
    features = true[labels] + randn(len(labels), 40, seed=2)
    plain, made = (Gaussians.of(features, labels, 10, shrunken=shrunken).centres for shrunken in (False, True))
    error = [(found - true).square().sum(1) for found in (plain, made)]
    few = counts == 2
    assert float(error[1][few].mean()) < 0.6 * float(error[0][few].mean())
    assert float((made - plain)[~few].norm() / plain[~few].norm()) < 0.1


def test_fewer_images_than_features_can_be_drawn_from() -> None:
    features, labels = randn(6, 20, seed=3, dtype=torch.float32), torch.arange(2).repeat(3)
    for made in (ClassStatistics.of(features, labels, 2), fitted(features, labels, 2)):
        assert bool(sample([made], 10, seeded(0))[0].isfinite().all())


def test_two_far_clusters_are_found() -> None:
    features = clusters(40)
    made = fit_mixtures(features, torch.zeros(40, dtype=torch.long), 1, components=2, seed=0)
    means = made.means[0]
    torch.testing.assert_close(made.weights[0], torch.full((2,), 0.5))
    expected = torch.stack([features[0::2].mean(0), features[1::2].mean(0)])
    torch.testing.assert_close(means[means[:, 0].argsort()], expected, rtol=1e-4, atol=1e-4)


def test_classes_do_not_mix_and_a_fit_is_repeatable() -> None:
    features = torch.cat([clusters(12, seed=1), 100 + clusters(12, seed=2)])
    labels = torch.arange(2).repeat_interleave(12)
    shuffled = torch.randperm(24, generator=seeded(3))
    fits = [fitted(features[i], labels[i], 2) for i in (slice(None), slice(None), shuffled)]
    assert same(fits[0].tensors(), fits[1].tensors())
    for fit in fits:
        for mean in (moments(fit)[0], fit.centres):
            apart = features[12:].mean(0) - features[:12].mean(0)
            torch.testing.assert_close(mean[1] - mean[0], apart, rtol=1e-4, atol=0)


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="class 1 has no image"):
        ClassStatistics.of(clusters(4), torch.zeros(4, dtype=torch.long), 2)


@pytest.mark.parametrize("of", [statistics(), statistics(mixtures=mixtures())], ids=["gaussians", "mixtures"])
def test_tensors_are_inverse(of: ClassStatistics) -> None:
    again = ClassStatistics.from_tensors(of.tensors())
    assert same(again.tensors(), of.tensors())
    assert (again.mixtures is None, again.freedom) == (of.mixtures is None, of.freedom)


def test_samples_of_several_tasks_are_of_each_tasks_classes_in_turn() -> None:
    """Each task as it was learned, by Gaussians of its own covariance or by mixtures: the moments of every class."""
    tasks, n = [statistics(1, seed=1), statistics(2, seed=20, mixtures=mixtures(2, 4, seed=20))], 20_000
    features, labels = sample(tasks, n, seeded(0))
    assert torch.equal(labels, torch.arange(3).repeat_interleave(n))
    mean, covariance = (torch.cat(parts) for parts in zip(*map(moments, tasks), strict=True))
    away = features.reshape(3, n, -1) - mean[:, None]
    z = away.mean(1) / (covariance.diagonal(dim1=1, dim2=2) / n).sqrt()
    assert float(z.abs().max()) < 4


def test_a_basis_is_not_stored_and_comes_out_bit_equal_from_what_is() -> None:
    features, labels = randn(40, 12, seed=1, dtype=torch.float32), torch.arange(40) % 3
    made = ClassStatistics.of(features, labels, 3)
    assert made.tensors().keys() == {"centres", "scatter", "freedom", "factors"}
    again = ClassStatistics.from_tensors(safetensors.torch.load(safetensors.torch.save(made.tensors())))
    assert torch.equal(again.basis, made.basis)
    drawn = [sample([s], 5, seeded(0))[0] for s in (made, again)]
    assert torch.equal(*drawn)
