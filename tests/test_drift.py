"""Feature drift: an affine map is found again, drifts add up, carry classes along, and say what half a vector does."""

import torch

from cases import GREY, backbone, randn, seeded, shake, stream
from intarsia import LoRA
from intarsia.class_stats.drift import FeatureDrift, compensate, fit_drift
from intarsia.class_stats.gaussians import Gaussians


def test_an_affine_drift_is_found_but_for_the_ridge() -> None:
    x, matrix, offset = randn(500, 6, seed=1) * 3 + 5, randn(6, 6, seed=2) / 4, randn(6, seed=3)
    drift = fit_drift(x, x + x @ matrix + offset)
    scale = x.std(0, correction=0)
    # The ridge shrinks standardised coefficients: (R + 0.02) B = R B_true with R the correlation.
    correlation = torch.corrcoef(x.T)
    shrunk = torch.linalg.solve(correlation + 0.02 * torch.eye(6), correlation @ (matrix * scale[:, None]))
    torch.testing.assert_close(drift.matrix, shrunk / scale[:, None], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(drift(x).mean(0), (x + x @ matrix + offset).mean(0), rtol=1e-5, atol=1e-7)


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
