"""Class statistics: what is drawn has the mixture's moments, the density is scipy's, few images are enough."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor

from cases import randn, same, seeded
from intarsia.statistics import ClassStatistics, fit_statistics


def mixtures(classes: int = 2, components: int = 3, width: int = 4, seed: int = 0) -> ClassStatistics:
    """Random mixtures in float64; the last component of the last class is missing."""
    weights = randn(classes, components, seed=seed).square() + 0.2
    weights[-1, -1] = 0
    means, variances = (randn(classes, components, width, seed=seed + i) for i in (1, 2))
    return ClassStatistics(weights / weights.sum(1, keepdim=True), 2 * means, variances.square() + 0.1)


def moments(statistics: ClassStatistics) -> tuple[Tensor, Tensor]:
    """Mean (C, D) and variance (C, D) of each class's mixture."""
    w = statistics.weights[..., None]
    mean = (w * statistics.means).sum(1)
    return mean, (w * (statistics.variances + statistics.means.square())).sum(1) - mean.square()


def test_samples_have_the_moments_of_the_mixture() -> None:
    statistics, n = mixtures(), 20_000
    features, labels = statistics.sample(n, seeded(1))
    assert torch.equal(labels, torch.arange(2).repeat_interleave(n))
    mean, variance = moments(statistics)
    drawn = features.reshape(2, n, -1)
    z = (drawn.mean(1) - mean) / (variance / n).sqrt()
    assert float(z.abs().max()) < 4
    squares = (drawn - mean[:, None]).square()
    z = (squares.mean(1) - variance) / (squares.std(1) / n**0.5)
    assert float(z.abs().max()) < 4


def test_samples_of_one_component_have_its_variance_not_its_root() -> None:
    single = ClassStatistics(torch.ones(1, 1), torch.zeros(1, 1, 2), torch.tensor([[[100.0, 0.01]]]))
    features, _ = single.sample(20_000, seeded(2))
    torch.testing.assert_close(features.var(0), torch.tensor([100.0, 0.01]), rtol=0.05, atol=0)


def test_samples_are_a_function_of_the_generator() -> None:
    draws = [mixtures().sample(5, seeded(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_density_is_scipys() -> None:
    statistics, x = mixtures(), randn(6, 4, seed=9) * 2
    got = statistics.log_density(x)
    for c in range(2):
        terms = [
            multivariate_normal.logpdf(x, statistics.means[c, k].numpy(), np.diag(statistics.variances[c, k].numpy()))  # pyright: ignore[reportArgumentType]
            + np.log(float(w))
            for k, w in enumerate(statistics.weights[c])
            if w > 0
        ]
        np.testing.assert_allclose(got[:, c].numpy(), logsumexp(np.array(terms), axis=0), rtol=1e-10)


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
    features, _ = statistics.sample(50, seeded(0))
    assert bool(features.isfinite().all())
    assert bool(statistics.log_density(features).isfinite().all())
    mean, _ = moments(statistics)
    torch.testing.assert_close(mean[0], clusters(images).mean(0), rtol=1e-3, atol=1e-3)


def test_one_component_is_the_mean_and_variance_of_the_class() -> None:
    features = clusters(8)
    statistics = fit_statistics(features, torch.zeros(8, dtype=torch.long), 1, seed=0)
    torch.testing.assert_close(statistics.means[0, 0], features.mean(0))
    torch.testing.assert_close(statistics.variances[0, 0], features.var(0, unbiased=False) + 1e-4)


def test_two_far_clusters_are_found() -> None:
    features = clusters(40)
    statistics = fit_statistics(features, torch.zeros(40, dtype=torch.long), 1, components=2, seed=0)
    order = statistics.means[0, :, 0].argsort()
    torch.testing.assert_close(statistics.weights[0], torch.full((2,), 0.5))
    expected = torch.stack([features[0::2].mean(0), features[1::2].mean(0)])
    torch.testing.assert_close(statistics.means[0, order], expected, rtol=1e-4, atol=1e-4)


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


def test_joined_classes_keep_their_densities_and_tensors_are_inverse() -> None:
    one, other = mixtures(1, 2, seed=1), mixtures(2, 4, seed=20)
    joined, x = ClassStatistics.join([one, other]), randn(6, 4, seed=9)
    assert len(joined) == 3
    torch.testing.assert_close(joined.log_density(x), torch.cat([one.log_density(x), other.log_density(x)], 1))
    assert bool(joined.sample(200, seeded(0))[0].isfinite().all())
    assert same(ClassStatistics.from_tensors(joined.tensors()).tensors(), joined.tensors())
