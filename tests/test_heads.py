"""Heads: pre-tuning, alignment and calibration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from cases import head, randn, same, seeded
from intarsia.heads import Head, align, calibrate, pretune
from intarsia.statistics import ClassStatistics


def points(count: int, classes: int = 3, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    return randn(classes, width, seed=seed)[labels] + 0.7 * randn(count, width, seed=seed + 1), labels


def gradients(classifier: Head, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy, in closed form: (p - e_y) f^T."""
    away = torch.softmax(classifier(features), 1) - F.one_hot(labels, len(classifier))
    return away.T @ features / len(features), away.mean(0)


@pytest.mark.parametrize("images", [2, 7, 127])
def test_tasks_of_few_images_are_pre_tuned_by_sgd(images: int) -> None:
    """One step with all images in one batch smaller than the batch size: W - lr (p - e_y) f^T."""
    start, (x, y) = head(3, 5), points(images)
    tuned = pretune(start, x, y, epochs=1, lr=0.01, batch_size=128, generator=seeded(0))
    weight, bias = gradients(start, x, y)
    torch.testing.assert_close(tuned.weight, start.weight - 0.01 * weight)
    torch.testing.assert_close(tuned.bias, start.bias - 0.01 * bias)
    assert not torch.equal(tuned.weight, start.weight)


def test_pre_tuning_uses_every_image_each_epoch_the_last_smaller_batch_too() -> None:
    """At a vanishing rate the steps add up to the sum over batches of each batch's mean gradient."""
    start, (x, y) = head(3, 5), points(10)
    lr = 1e-9
    tuned = pretune(start, x, y, epochs=1, lr=lr, batch_size=4, generator=seeded(3))
    batches = torch.randperm(10, generator=seeded(3)).split(4)
    assert [len(b) for b in batches] == [4, 4, 2]
    expected = torch.stack([gradients(start, x[b], y[b])[0] for b in batches]).sum(0)
    torch.testing.assert_close((start.weight - tuned.weight) / lr, expected, rtol=1e-5, atol=1e-6)


def test_pre_tuning_is_a_function_of_the_generator_and_leaves_its_start() -> None:
    start, (x, y) = head(3, 5), points(30)
    kept = {k: v.clone() for k, v in start.tensors().items()}
    runs = [pretune(start, x, y, epochs=3, lr=0.1, batch_size=8, generator=seeded(s)) for s in (1, 1, 2)]
    assert same(runs[0].tensors(), runs[1].tensors())
    assert not same(runs[0].tensors(), runs[2].tensors())
    assert same(kept, start.tensors())
    assert not runs[0].weight.requires_grad


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), size=st.floats(0.05, 20))
def test_calibration_keeps_the_arg_max_and_finds_the_best_factor(seed: int, size: float) -> None:
    raw = head(3, 5, seed)
    start, (x, y) = Head(raw.weight * size, raw.bias * size), points(40, seed=seed)
    done = calibrate(start, x, y)
    assert torch.equal(done(x).argmax(1), start(x).argmax(1))
    factor = done.weight / start.weight
    torch.testing.assert_close(factor, torch.full_like(factor, float(factor[0, 0])))
    torch.testing.assert_close(done.bias / start.bias, factor[:, 0])

    def loss(log_factor: float) -> float:
        return float(F.cross_entropy(start(x) * torch.tensor(log_factor).exp(), y))

    best = minimize_scalar(loss, bounds=(-6.9, 6.9), method="bounded", options={"xatol": 1e-10})
    assert float(F.cross_entropy(done(x), y)) <= best.fun + 1e-9


def far_classes(classes: int = 4, width: int = 6, spread: float = 1.0) -> ClassStatistics:
    means = 100 * torch.eye(width)[:classes, None]
    return ClassStatistics(torch.ones(classes, 1), means, torch.full((classes, 1, width), spread**2))


def test_alignment_is_a_function_of_the_generator() -> None:
    start = head(4, 6, dtype=torch.float32)
    kept = {k: v.clone() for k, v in start.tensors().items()}
    runs = [
        align(start, far_classes(), epochs=3, per_class=32, lr=0.01, batch_size=16, generator=seeded(s))
        for s in (1, 1, 2)
    ]
    assert same(runs[0].tensors(), runs[1].tensors())
    assert not same(runs[0].tensors(), runs[2].tensors())
    assert same(kept, start.tensors())


def test_alignment_ends_the_reign_of_one_tasks_louder_head() -> None:
    """Classes 100 standard deviations apart, the second task's logits drowned by a bias of the first."""
    start = Head(0.01 * torch.eye(6)[:4], torch.tensor([50.0, 50.0, 0.0, 0.0]))
    features, labels = far_classes().sample(50, seeded(9))
    assert int((start(features).argmax(1) == labels).sum()) == 100
    aligned = align(start, far_classes(), epochs=20, per_class=64, lr=0.01, batch_size=16, generator=seeded(0))
    assert torch.equal(aligned(features).argmax(1), labels)


def test_alignment_sets_the_common_scale_whatever_it_was() -> None:
    """Its own loss does not see the scale: without a learning rate all it does is calibrate."""
    start = Head(torch.eye(6)[:4], torch.zeros(4))
    loud = Head(8 * start.weight, 8 * start.bias)
    ours, theirs = (
        align(h, far_classes(spread=100), epochs=1, per_class=64, lr=0.0, batch_size=16, generator=seeded(1))
        for h in (start, loud)
    )
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-3, atol=0)
    factor = float(ours.weight[0, 0])
    assert 1e-3 < factor < 0.1  # a minimum inside the range that is searched
    torch.testing.assert_close(ours.weight, factor * start.weight)


def test_head_is_a_linear_layer_whose_rows_are_classes() -> None:
    one, other, x = head(2, 5, seed=1), head(3, 5, seed=2), randn(4, 5, seed=3)
    joined = Head.join([one, other])
    assert len(joined) == 5
    torch.testing.assert_close(joined(x), torch.cat([one(x), other(x)], 1))
    assert same(joined[slice(2, 5)].tensors(), other.tensors())
    assert same(Head.from_tensors(joined.tensors()).tensors(), joined.tensors())
    joined[slice(0, 2)].weight.zero_()
    assert torch.equal(joined.weight[:2], one.weight)  # rows are copies


def test_random_head_is_uniform_and_a_function_of_the_generator() -> None:
    drawn = Head.random(500, 100, seeded(1))
    assert float(drawn.weight.abs().max()) <= 0.1
    assert float(drawn.weight.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert not drawn.bias.any()
    assert torch.equal(drawn.weight, Head.random(500, 100, seeded(1)).weight)
