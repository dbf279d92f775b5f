"""Heads: pre-tuning, alignment and calibration."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.nn import functional as F

from cases import PlainSGD, head, plain_statistics, randn, same, seeded
from intarsia.class_stats.gaussians import RANK, Gaussians
from intarsia.class_stats.mixtures import fit_mixtures
from intarsia.class_stats.statistics import ClassStatistics, sample
from intarsia.heads.alignment import TEMPERATURE, align, alignment_epochs, normalized_slope, pretune_plainly
from intarsia.heads.discriminant import OWN, RIDGE, discriminant, initial_heads, linear_discriminant
from intarsia.heads.head import Head
from intarsia.heads.layer import HeadLayer
from intarsia.heads.pretraining import MOMENTUM, pretune
from intarsia.heads.pretraining import cross_entropy_slope as _slope
from intarsia.heads.whitening import RIDGE as WHITENING


def points(count: int, classes: int = 3, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    return randn(classes, width, seed=seed)[labels] + 0.7 * randn(count, width, seed=seed + 1), labels


def whitened_gradient(start: Head, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean cross-entropy over some rows, in closed form: (p - e_y) (f - mean)^T (covariance + ridge)^-1."""
    centered = x - x.mean(0)
    ridge = WHITENING * torch.diag(x.var(0, correction=0))
    metric = torch.linalg.inv(centered.T @ centered / len(x) + ridge)
    away = torch.softmax(start(x[rows]), 1) - F.one_hot(y[rows], len(start))
    weight = away.T @ centered[rows] @ metric / len(rows)
    return weight, away.mean(0) - weight @ x.mean(0)


@pytest.mark.parametrize("images", [6, 7, 127])
def test_tasks_of_few_images_are_pre_tuned_by_sgd(images: int) -> None:
    """One step, all images in one batch smaller than the batch size: the gradient on whitened features, folded back."""
    start, (x, y) = head(3, 5), points(images)
    tuned = pretune(start, x, y, epochs=1, lr=0.01, batch_size=128, generator=seeded(0))
    weight, bias = whitened_gradient(start, x, y, torch.arange(images))
    torch.testing.assert_close(tuned.weight, start.weight - 0.01 * weight)
    torch.testing.assert_close(tuned.bias, start.bias - 0.01 * bias)
    assert not torch.equal(tuned.weight, start.weight)


def test_pre_tuning_uses_every_image_each_epoch_the_last_smaller_batch_too() -> None:
    """At a vanishing rate the steps add up to the gradients of all batches, each as long as momentum carries it."""
    start, (x, y) = head(3, 5), points(10)
    lr = 1e-9
    tuned = pretune(start, x, y, epochs=1, lr=lr, batch_size=4, generator=seeded(3))
    batches = torch.randperm(10, generator=seeded(3)).split(4)
    assert [len(b) for b in batches] == [4, 4, 2]
    heard = [1 + MOMENTUM + MOMENTUM**2, 1 + MOMENTUM, 1]
    steps = [times * whitened_gradient(start, x, y, b)[0] for b, times in zip(batches, heard, strict=True)]
    moved = (start.weight - tuned.weight) / lr
    torch.testing.assert_close(moved, torch.stack(steps).sum(0), rtol=1e-4, atol=1e-5)


def test_slopes_are_the_gradients_of_their_losses() -> None:
    """Of the mean cross-entropy, and of that of z / (0.1 |z|) (docs/method.md section 3, step 3)."""
    labels = torch.tensor([0, 2, 1, 2])
    logits = randn(4, 3, seed=5).requires_grad_()
    plain = F.cross_entropy(logits, labels)
    normalised = F.cross_entropy(logits / (TEMPERATURE * logits.norm(dim=1, keepdim=True)), labels)
    for loss, slope in ((plain, _slope), (normalised, normalized_slope)):
        (expected,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(slope(logits.detach(), labels), expected)


def test_pre_tuning_is_a_function_of_the_generator_and_leaves_its_start() -> None:
    start, (x, y) = head(3, 5), points(30)
    kept = {k: v.clone() for k, v in start.tensors().items()}
    runs = [pretune(start, x, y, epochs=3, lr=0.1, batch_size=8, generator=seeded(s)) for s in (1, 1, 2)]
    assert same(runs[0].tensors(), runs[1].tensors())
    assert not same(runs[0].tensors(), runs[2].tensors())
    assert same(kept, start.tensors())
    assert not runs[0].weight.requires_grad


@pytest.mark.parametrize("images", [5, 130, 300])
def test_the_papers_pre_tuning_is_plain_sgd_at_a_constant_rate_over_every_image(images: int) -> None:
    """No momentum, plain features, batches of 128, the last smaller one too; from a truncated normal, bias zero."""
    x, y = points(images)
    found = pretune_plainly(x, y, 3, epochs=3, lr=0.01, generator=seeded(4))
    generator = seeded(4)
    start = Head.truncated_normal(3, 5, generator)
    loop = PlainSGD(Head(start.weight.double(), start.bias.double()))
    for _ in range(3):
        for rows in torch.randperm(images, generator=generator).split(128):
            loop.step(x[rows], y[rows], 0.01, normalised=False)
    torch.testing.assert_close(found.tensors(), loop.head().tensors())
    assert found.weight.dtype == torch.float64


def two_tasks() -> list[ClassStatistics]:
    """Two tasks of mixtures in float64: 2 and 3 classes of 5 features."""
    made: list[ClassStatistics] = []
    for classes, seed in ((2, 1), (3, 5)):
        x, y = points(40, classes, seed=seed)
        made.append(ClassStatistics.of(x, y, classes, fit_mixtures(x, y, classes, seed=0)))
    return made


def test_the_papers_alignment_draws_anew_each_epoch_and_lasts_5_epochs_more_with_every_task() -> None:
    """256 features of every class, plain SGD on logits / (0.1 |logits|), cosine per epoch."""
    tasks, start = two_tasks(), head(5, 5)
    assert [alignment_epochs(t) for t in (1, 2, 10)] == [10, 15, 55]
    found = align(start, tasks, lr=0.01, generator=seeded(7))
    generator, loop = seeded(7), PlainSGD(start)
    for epoch in range(15):
        features, labels = sample(tasks, 256, generator)
        lr = 0.01 * (1 + math.cos(math.pi * epoch / 15)) / 2
        for rows in torch.randperm(5 * 256, generator=generator).split(128):
            loop.step(features[rows], labels[rows], lr, normalised=True)
    torch.testing.assert_close(found.tensors(), loop.head().tensors())


def test_alignment_is_a_function_of_the_generator_and_leaves_its_start() -> None:
    start, tasks = head(2, 5), two_tasks()[:1]
    kept = {k: v.clone() for k, v in start.tensors().items()}
    runs = [align(start, tasks, lr=0.01, generator=seeded(s)) for s in (1, 1, 2)]
    assert same(runs[0].tensors(), runs[1].tensors())
    assert not same(runs[0].tensors(), runs[2].tensors())
    assert same(kept, start.tensors())


def far_classes(classes: int = 4, width: int = 6, spread: float = 1.0) -> ClassStatistics:
    return plain_statistics(100 * torch.eye(width)[:classes], torch.full((width,), spread**2))


def test_alignment_ends_the_reign_of_one_tasks_louder_head() -> None:
    """Classes 100 standard deviations apart, the second task's logits drowned by a bias of the first."""
    start = Head(0.01 * torch.eye(6)[:4], torch.tensor([5.0, 5.0, 0.0, 0.0]))
    features, labels = sample([far_classes()], 50, seeded(9))
    assert int((start(features).argmax(1) == labels).sum()) == 100
    aligned = align(start, [far_classes()], lr=0.01, generator=seeded(0))
    assert torch.equal(aligned(features).argmax(1), labels)


def test_initial_heads_are_the_discriminant_with_a_ridge_at_a_temperature() -> None:
    """W_c = (S + r diag S)^-1 (m_c - m) / 3, the bias that of the middle between classes."""
    x, y = points(40, 2, 6)
    tasks = [far_classes(), ClassStatistics.of(x.float(), y, 2)]
    joined = Gaussians.join([t.gaussians() for t in tasks])
    made = initial_heads(joined)
    covariance = joined.covariance().dense()
    ridged = covariance + RIDGE * torch.diag(covariance.diagonal())
    middle = joined.centres.mean(0)
    weight = (joined.centres - middle) @ torch.linalg.inv(ridged) / 3
    torch.testing.assert_close(made.weight.double(), weight, rtol=1e-4, atol=1e-7)
    bias = -0.5 * ((joined.centres + middle) * weight).sum(1)
    torch.testing.assert_close(made.bias.double(), bias, rtol=1e-4, atol=1e-5)
    features, labels = sample([tasks[0]], 50, seeded(9))
    assert torch.equal(made(features).argmax(1), labels)


def test_a_single_class_has_initial_heads_of_zero() -> None:
    x, y = points(12, 1)
    made = initial_heads(Gaussians.of(x, y, 1))
    assert not made.weight.any()
    assert not made.bias.any()


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


def test_the_papers_head_starts_at_a_truncated_normal_of_deviation_002() -> None:
    drawn = Head.truncated_normal(500, 100, seeded(1))
    assert float(drawn.weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(drawn.weight.mean()) == pytest.approx(0, abs=4e-4)
    assert not drawn.bias.any()
    assert torch.equal(drawn.weight, Head.truncated_normal(500, 100, seeded(1)).weight)


def test_linear_discriminant_is_the_log_posterior_of_gaussians_with_one_covariance() -> None:
    features = torch.cat([randn(60, 4, seed=s) @ (randn(4, 4, seed=9) + torch.eye(4)) + s for s in range(3)]).float()
    labels = torch.arange(3).repeat_interleave(60)
    classes = Gaussians.join(
        [Gaussians.of(features[:120], labels[:120], 2), Gaussians.of(features[120:], labels[:60], 1)]
    )
    logits = linear_discriminant(classes)(features).double()
    covariance = classes.covariance().dense().numpy()
    densities = [
        multivariate_normal.logpdf(features, centre.numpy(), covariance)  # pyright: ignore[reportArgumentType]
        for centre in classes.centres
    ]
    expected = torch.from_numpy(np.stack(densities, 1)).softmax(1)
    torch.testing.assert_close(logits.softmax(1), expected, rtol=1e-3, atol=1e-4)
    assert float((logits.argmax(1) == labels).double().mean()) > 0.6


def spreading(classes: int, each: int, width: int) -> tuple[Tensor, Tensor]:
    """Features of classes that spread in different directions, and their labels."""
    parts = [randn(each, width, seed=c) @ (randn(width, width, seed=50 + c) + torch.eye(width)) for c in range(classes)]
    return torch.cat([part + 3 * c for c, part in enumerate(parts)]), torch.arange(classes).repeat_interleave(each)


@pytest.mark.parametrize(("each", "width"), [(9, 12), (60, 5)])
def test_discriminant_is_mahalanobis_distance_under_all_classes_covariance_and_a_part_of_the_own(
    each: int, width: int
) -> None:
    """But for what all classes have in common, and what the squares are on average over the covariance of all; exact,
    since factors hold the whole covariance of few images.
    """
    features, labels = spreading(3, each, width)
    classes, x = Gaussians.of(features, labels, 3), randn(20, width, seed=99)
    expected = []
    for c in range(3):
        covariance = classes.covariance().dense() + OWN * features[labels == c].T.cov()
        away = x - classes.centres[c]
        squares = width - torch.linalg.solve(covariance, classes.covariance().dense()).trace()
        expected.append(-0.5 * ((away * torch.linalg.solve(covariance, away.T).T).sum(1) + squares))
    left = discriminant(classes)(x) - torch.stack(expected, 1)
    torch.testing.assert_close(left, left[:, :1].expand(-1, 3), rtol=1e-4, atol=1e-3)


def test_a_class_of_few_images_is_answered_as_by_the_linear_discriminant_on_average() -> None:
    """Its factors are short: beside classes of many images squares alone would be against it."""
    features, labels = spreading(2, 300, 6)
    both = Gaussians.of(torch.cat([features, features[:2] + 9]), torch.cat([labels, torch.tensor([2, 2])]), 3)
    around = randn(20_000, 6, seed=8) @ both.covariance().basis().T
    for c, centre in enumerate(both.centres):
        more = discriminant(both)(around + centre) - linear_discriminant(both)(around + centre)
        assert float(more[:, c].mean()) == pytest.approx(0, abs=0.03 * float(more[:, c].std()) + 1e-3)


def test_factors_of_fewer_directions_are_filled_up_with_none() -> None:
    x, y = spreading(2, 9, 20)
    one, two = Gaussians.of(x, y, 2), Gaussians.of(*spreading(2, 15, 20), 2)
    assert two.factors is not None
    short = replace(two, factors=two.factors[:, :16])
    padded = replace(two, factors=torch.cat([two.factors[:, :16], torch.zeros(2, 4, 20, dtype=torch.float64)], 1))
    expected = discriminant(Gaussians.join([one, padded]))
    torch.testing.assert_close(discriminant(Gaussians.join([one, short]))(x), expected(x))


def test_a_class_that_spreads_more_answers_farther_out() -> None:
    """Two classes of one mean, one narrow and one wide: the linear discriminant cannot tell them apart."""
    labels = torch.arange(2).repeat_interleave(400)
    features = randn(800, 4, seed=1) * torch.where(labels == 1, 3.0, 0.5)[:, None]
    classes = Gaussians.of(features, labels, 2)
    even = replace(classes, centres=torch.zeros(2, 4, dtype=torch.float64))
    far = features.norm(dim=1) > 6
    assert bool((discriminant(even)(features)[far].argmax(1) == 1).all())
    assert float(linear_discriminant(even)(features).abs().max()) == 0


def test_factors_are_a_class_s_own_covariance() -> None:
    """All of it, of few images or features; else its leading directions, seen as all classes' covariance has it."""
    for each, width in ((9, 40), (300, 8)):
        features, labels = spreading(2, each, width)
        factors = Gaussians.of(features, labels, 2).factors
        assert factors is not None
        assert factors.shape[1] == min(RANK, width)
        for c, own in enumerate(factors):
            torch.testing.assert_close(own.T @ own, features[labels == c].T.cov(), rtol=1e-9, atol=1e-9)
    features, labels = randn(400, 80, seed=1) * torch.linspace(0.01, 3, 80).exp(), torch.arange(400) % 2
    features[labels == 1, :RANK] *= 4
    classes = Gaussians.of(features, labels, 2)
    assert classes.factors is not None
    white = (features[labels == 1] - classes.centres[1]) @ classes.covariance().whitening()
    values = torch.linalg.eigvalsh(white.T.cov()).flip(0)
    kept = (classes.factors[1] @ classes.covariance().whitening()).square().sum()
    assert float(values[:RANK].sum()) * 0.9 < float(kept) < float(values[:RANK].sum()) * (1 + 1e-9)


def test_factors_move_as_little_as_features_do() -> None:
    """Of features that differ by their rounding: two processes sum in another order than one."""
    features, labels = spreading(2, 100, 60)
    first, second = (Gaussians.of(x, labels, 2).factors for x in (features, features + 1e-7 * randn(200, 60, seed=5)))
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4 * float(first.abs().max()))


def test_classes_without_factors_have_the_linear_discriminant() -> None:
    """As do all, if some are of a pool of before there were any."""
    x, y = spreading(2, 9, 20)
    one, two = Gaussians.of(x, y, 2), Gaussians.of(*spreading(2, 15, 20), 2)
    both, some = Gaussians.join([one, two]), Gaussians.join([one, replace(two, factors=None)])
    assert both.factors is not None
    assert both.factors.shape == (4, 20, 20)
    assert some.factors is None
    assert discriminant(some).factors is None
    for name in ("weight", "bias"):
        assert torch.equal(getattr(discriminant(some), name), getattr(discriminant(both).linear(), name))
    whole = discriminant(both)
    again = Head.join([whole[:1], *whole[1:].split([2, 1])])
    torch.testing.assert_close(again(x), whole(x))
    with pytest.raises(ValueError, match="with squares and heads without"):
        Head.join([whole, whole.linear()])
    for_a_day = {name: value for name, value in whole.tensors().items() if name != "expected"}
    assert whole.expected is not None
    torch.testing.assert_close(Head.from_tensors(for_a_day)(x), whole(x) + whole.expected / 2)
    offset = randn(20, seed=3).float()
    torch.testing.assert_close(whole.shifted(offset)(x.float() + offset), whole(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(HeadLayer(whole)(x.float()), whole(x))


def test_classes_of_one_image_have_the_spread_between_them() -> None:
    """As one class of all their images would have it: S is their covariance, shrunk, and logits are of its size."""
    features, labels = 7 * randn(12, 4, seed=1), torch.arange(12)
    made = Gaussians.of(features, labels, 12)
    whole = Gaussians.of(features, torch.zeros(12, dtype=torch.long), 1)
    torch.testing.assert_close(made.covariance().dense(), whole.covariance().dense(), rtol=1e-4, atol=1e-4)
    head = discriminant(made)
    assert head(features.float()).argmax(1).tolist() == labels.tolist()
    assert float(head(features.float()).std()) < 10
    drawn, _ = sample([ClassStatistics.of(features.float(), labels, 12)], 200, seeded(0))
    residual = drawn - features.float().repeat_interleave(200, 0)
    torch.testing.assert_close(residual.T.cov().double(), made.covariance().dense(), rtol=0.2, atol=5.0)


def test_discriminant_does_not_depend_on_where_the_features_lie() -> None:
    """Rows sum to zero: what all classes share, as a board's grey, does not reach the logits' differences."""
    made = discriminant(Gaussians.of(randn(40, 5, seed=1).float() + 100, torch.arange(40) % 4, 4))
    torch.testing.assert_close(made.weight.sum(0), torch.zeros(5), rtol=0, atol=1e-4)


def test_a_shifted_head_says_of_shifted_features_what_it_said_of_the_features() -> None:
    x, made, offset = randn(7, 5, seed=1), head(3, 5, seed=2), randn(5, seed=3)
    torch.testing.assert_close(made.shifted(offset)(x + offset), made(x))
