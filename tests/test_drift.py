"""Feature drift: an affine map is found again, drifts add up, carry classes along, and say what half a vector does."""

import pytest
import torch

from cases import GREY, backbone, randn, seeded, shake, stream
from intarsia import LoRA
from intarsia.class_stats.drift import RIDGES, FeatureDrift, compensate, fit_drift
from intarsia.class_stats.gaussians import Gaussians


def test_an_affine_drift_is_found_but_for_the_ridge() -> None:
    x, matrix, offset = randn(500, 6, seed=1) * 3 + 5, randn(6, 6, seed=2) / 4, randn(6, seed=3)
    drift = fit_drift(x, x + x @ matrix + offset, [0.02])
    scale = x.std(0, correction=0)
    # The ridge shrinks standardised coefficients: (R + 0.02) B = R B_true with R the correlation.
    correlation = torch.corrcoef(x.T)
    shrunk = torch.linalg.solve(correlation + 0.02 * torch.eye(6), correlation @ (matrix * scale[:, None]))
    torch.testing.assert_close(drift.matrix, shrunk / scale[:, None], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(drift(x).mean(0), (x + x @ matrix + offset).mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("images", "noise"), [(40, 0.1), (40, 3.0), (12, 0.1)])
def test_the_ridge_is_the_best_by_generalized_cross_validation(images: int, noise: float) -> None:
    """By the definition, with the matrix H (N, N) that makes predictions of drifts; also with fewer images than D."""
    x = randn(images, 15, seed=1).double()
    moved = x + x @ randn(15, 15, seed=2).double() / 8 + 1 + noise * randn(images, 15, seed=3)
    white, away = (x - x.mean(0)) / x.std(0, correction=0), (moved - x) - (moved - x).mean(0)

    def error(ridge: float) -> float:
        hat = white @ torch.linalg.solve(white.T @ white + ridge * images * torch.eye(15), white.T)
        return images * float((away - hat @ away).square().sum()) / (images - 1 - float(hat.trace())) ** 2

    best = min(RIDGES, key=error)
    assert RIDGES[0] < best < RIDGES[-1]
    assert torch.equal(fit_drift(x, moved).matrix, fit_drift(x, moved, [best]).matrix)


def test_what_follows_nothing_is_a_translation() -> None:
    """More features than images, which drift at random: the linear part all but goes, the offset stays."""
    x = randn(30, 60, seed=1)
    drift = fit_drift(x, x + 2 + randn(30, 60, seed=2))
    torch.testing.assert_close(drift(x).mean(0), (x + 2 + randn(30, 60, seed=2)).mean(0), rtol=1e-5, atol=1e-5)
    assert float((x @ drift.matrix).std()) < 0.15


@pytest.mark.parametrize("images", [1, 2])
def test_one_image_or_two_have_a_drift(images: int) -> None:
    x = randn(images, 4, seed=1)
    drift = fit_drift(x, x + 1)
    torch.testing.assert_close(drift(x), x + 1)


def test_a_feature_that_does_not_vary_drifts_by_a_constant() -> None:
    x = randn(50, 3, seed=1)
    x[:, 1] = 2.0
    drift = fit_drift(x, x + 1.0)
    torch.testing.assert_close(drift(x), x + 1.0)


def test_weighted_drifts_add_up() -> None:
    x = randn(4, 5, seed=1)
    drifts = [FeatureDrift(randn(5, 5, seed=s), randn(5, seed=s + 10)) for s in (2, 3)]
    both = FeatureDrift.weighted(drifts, [0.25, -2.0])
    expected = x + 0.25 * (drifts[0](x) - x) - 2 * (drifts[1](x) - x)
    torch.testing.assert_close(both(x), expected)


def test_carried_classes_are_those_of_the_carried_features() -> None:
    """Centres and scatter within classes of drift(x) are the carried ones of x, to the last digit."""
    x, labels = randn(40, 5, seed=1), torch.arange(40) % 3
    drift = FeatureDrift(randn(5, 5, seed=3), randn(5, seed=4))
    expected, found = Gaussians.of(drift(x), labels, 3), compensate(Gaussians.of(x, labels, 3), drift)
    torch.testing.assert_close(found.centres, expected.centres, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-10, atol=1e-10)
    assert found.freedom == expected.freedom == 37


def test_classes_elsewhere_move_as_far_as_those_where_the_drift_was_fitted() -> None:
    here = Gaussians(randn(3, 5, seed=1), torch.eye(5, dtype=torch.float64), 9)
    drift, start = FeatureDrift(randn(5, 5, seed=3), randn(5, seed=4)), randn(3, 5, seed=2)
    torch.testing.assert_close(compensate(here, drift, start).centres - here.centres, drift(start) - start)


def test_half_a_task_vector_moves_the_mean_feature_half_as_far() -> None:
    """First order: half of what tau does is what half of it does, while tau is small."""
    theta0 = backbone()
    images = GREY.normalize(stream(1)[0].train.tensor(GREY))
    before = theta0.features(images)
    with theta0.attach(LoRA(2), seeded(1)) as adapter:
        shake(adapter, 1, size=0.02)
        drift = fit_drift(before, theta0.features(images))
        adapter.compose(None, 2)
        halved = theta0.features(images)
    half = FeatureDrift.weighted([drift], [0.5])
    moved = (halved - before).mean(0)
    assert float(((half(before) - halved).mean(0)).norm() / moved.norm()) < 0.1
