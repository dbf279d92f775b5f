"""The theorem: on quadratics to the last digit, on a pool against every number computed another way."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import GREY, positive, randn, stream, vectors
from intarsia import InputError, Pool, diagnose
from intarsia.curvature import CURVATURES
from intarsia.curvature.fisher import DiagonalFisher, DiagonalMetric
from intarsia.curvature.jensen_gap import gap
from intarsia.evaluation.kept import Kept
from intarsia.evaluation.landscape import gap_path, loss_paths
from intarsia.merging.merge import merge
from intarsia.task_vector import TaskVector


def weights(parts: Sequence[float]) -> list[float]:
    return [p / sum(parts) for p in parts]


shares = st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda parts: sum(parts) > 0.1)


@given(seed=st.integers(0, 10_000), parts=shares, definite=st.booleans())
def test_composed_loss_plus_gap_is_the_mean_loss(seed: int, parts: list[float], definite: bool) -> None:
    """l(theta_P) + Omega = sum w l(theta_t) for any symmetric H: `gap` in the basis of its eigenvectors."""
    n, w = 7, weights(parts)
    half = randn(n, n, seed=seed)
    H = half @ half.T if definite else half + half.T
    g, taus = randn(n, seed=seed + 1), randn(len(w), n, seed=seed + 2)
    values, basis = torch.linalg.eigh(H)
    if not definite:
        assume(float(values.min()) < -0.1 and float(values.max()) > 0.1)

    def loss(tau: Tensor) -> float:
        return float(1.5 + g @ tau + 0.5 * tau @ H @ tau)

    composed = torch.tensor(w, dtype=torch.float64) @ taus
    omega = gap([{"w": tau @ basis} for tau in taus], w, DiagonalMetric({"w": values}))
    mean = sum(x * loss(tau) for x, tau in zip(w, taus, strict=True))
    assert loss(composed) + omega == pytest.approx(mean, rel=1e-10, abs=1e-10)
    if definite:
        assert omega >= -1e-12  # Jensen


@given(seed=st.integers(0, 10_000), parts=shares)
def test_gap_is_the_sum_over_pairs_and_the_difference_of_norms(seed: int, parts: list[float]) -> None:
    w = weights(parts)
    taus = vectors(len(w), seed)
    metric = positive(taus[0], seed)
    pairs = sum(
        0.5 * w[t] * w[u] * float((taus[t] - taus[u]).norm(metric)) ** 2 for t in range(len(w)) for u in range(t)
    )
    composed = w[0] * taus[0]
    for x, tau in zip(w[1:], taus[1:], strict=True):
        composed = composed + x * tau
    norms = sum(x * float(tau.norm(metric)) ** 2 for x, tau in zip(w, taus, strict=True))
    assert gap(taus, w, metric) == pytest.approx(pairs, rel=1e-10, abs=1e-12)
    assert gap(taus, w, metric) == pytest.approx(0.5 * (norms - float(composed.norm(metric)) ** 2), rel=1e-9, abs=1e-10)


@given(parts=st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_gap_needs_weights_that_sum_to_one(parts: list[float]) -> None:
    assume(abs(sum(parts) - 1) > 2e-6)
    taus = vectors(len(parts))
    with pytest.raises(ValueError, match="Theorem 1 needs 1"):
        gap(taus, parts, positive(taus[0], 1))


def test_gap_holds_for_negative_weights_too() -> None:
    taus = vectors(3)
    metric, w = positive(taus[0], 1), [0.8, -0.5, 0.7]
    composed = 0.8 * taus[0] - 0.5 * taus[1] + 0.7 * taus[2]
    norms = sum(x * float(tau.norm(metric)) ** 2 for x, tau in zip(w, taus, strict=True))
    assert gap(taus, w, metric) == pytest.approx(0.5 * (norms - float(composed.norm(metric)) ** 2))


def test_gap_of_one_module_or_of_equal_ones_is_zero() -> None:
    (tau,) = vectors(1)
    metric = positive(tau, 1)
    assert gap([tau], [1.0], metric) == 0
    assert gap([tau, tau, tau], [0.25, 0.25, 0.5], metric) == pytest.approx(0, abs=1e-25)


# A pool


def everything(pool: Pool) -> tuple[Tensor, Tensor]:
    """Every training image, normalised, and its label among all classes."""
    tasks = list(stream())
    first = [2 * i for i in range(len(tasks))]
    images = torch.cat([t.train.tensor(GREY) for t in tasks])
    labels = torch.cat([t.train.labels + f for t, f in zip(tasks, first, strict=True)])
    return GREY.normalize(images), labels


def loss(pool: Pool, coefficients: Mapping[str, float]) -> float:
    images, labels = everything(pool)
    reference = pool.reference()
    assert reference is not None
    network = merge(pool.backbone, pool.adapter, [pool.module(t) for t in pool.tasks], coefficients)
    return float(F.cross_entropy(reference(network(images)), labels))


def test_diagnosis_is_what_its_names_say(pool: Pool) -> None:
    found = diagnose(pool, stream())
    tasks, share = pool.tasks, 1 / 4
    assert found.tasks == tasks
    assert found.images == 48
    assert found.theta0_loss == pytest.approx(loss(pool, {}), rel=1e-5)
    assert found.composed_loss == pytest.approx(loss(pool, dict.fromkeys(tasks, share)), rel=1e-5)
    assert found.module_losses == pytest.approx([loss(pool, {t: 1.0}) for t in tasks], rel=1e-5)
    assert found.mean_module_loss == pytest.approx(sum(found.module_losses) / 4)
    assert found.true_gap == pytest.approx(found.mean_module_loss - found.composed_loss)
    taus, fisher = [pool.vector(t) for t in tasks], pool.fisher()
    assert isinstance(fisher, DiagonalFisher)
    metric = {n: f / 48 for n, f in fisher.sums.items()}
    pairs = [(t, u) for t in range(4) for u in range(t)]
    omega = sum(0.5 * share**2 * float((taus[t] - taus[u]).norm(metric)) ** 2 for t, u in pairs)
    assert found.predicted_gap == pytest.approx(omega, rel=1e-5)
    assert found.predicted_gap > 0
    assert found.vector_norms == pytest.approx([float(tau.norm()) for tau in taus])
    composed = share * (taus[0] + taus[1] + taus[2] + taus[3])
    for t in range(4):
        assert found.cosines[t] == pytest.approx([float(taus[t].cosine(u)) for u in taus])
        assert found.cosines[t][t] == pytest.approx(1)
        assert found.cosine_to_composed[t] == pytest.approx(float(taus[t].cosine(composed)), rel=1e-5)


def test_gradient_norm_is_that_of_the_mean_loss_at_theta0(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = everything(pool)
    reference, theta0 = pool.reference(), pool.backbone
    assert reference is not None
    paths = {
        f"{path}.weight": theta0.model.get_submodule(path).get_parameter("weight") for path in theta0.targets.values()
    }
    state = dict(theta0.model.named_parameters())

    def mean_loss(tuned: dict[str, Tensor]) -> Tensor:
        features = torch.func.functional_call(theta0.model, {**state, **tuned}, (images,))
        return F.cross_entropy(reference(features), labels)

    gradients = torch.func.grad(mean_loss)({name: w.detach() for name, w in paths.items()})
    expected = float(torch.cat([g.flatten() for g in gradients.values()]).norm())
    assert expected > 1e-3
    monkeypatch.setattr("intarsia.backbones.forward.BATCH", 7)
    assert diagnose(pool, stream()).gradient_norm == pytest.approx(expected, rel=1e-4)
    assert not any(p.requires_grad or p.grad is not None for p in theta0.model.parameters())


def test_before_pre_tuning_the_heads_are_random(pool: Pool) -> None:
    one, other = (diagnose(pool, stream(), seed=s) for s in (0, 1))
    assert one.gradient_norm_before != one.gradient_norm
    assert one.gradient_norm_before != other.gradient_norm_before
    assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)
    assert one.remainder == pytest.approx(one.true_gap - one.predicted_gap)


def test_loss_along_a_line_and_its_second_order_picture(pool: Pool) -> None:
    """Loss at each position as elsewhere; the prediction has the loss, slope and curvature F of theta0."""
    lines = {
        "mean": lambda s: dict.fromkeys(pool.tasks, s / 4),
        "one to two": lambda s: {"task01": 1 - s, "task02": s},
    }
    at, found = (0.0, 1e-2, 2e-2, 1.0), loss_paths(pool, stream(), lines, (0.0, 1e-2, 2e-2, 1.0))
    assert [path.name for path in found] == list(lines)
    for path, line in zip(found, lines.values(), strict=True):
        assert path.at == at
        assert path.loss == pytest.approx([loss(pool, line(s)) for s in at], rel=1e-5)
    mean, fisher = found[0], pool.fisher()
    assert isinstance(fisher, DiagonalFisher)
    composed = 0.25 * (pool.vector("task01") + pool.vector("task02") + pool.vector("task03") + pool.vector("task04"))
    for predicted, square in (
        (mean.diagonal, float(composed.norm(fisher.mean(0.0))) ** 2),
        (mean.whole, whole_square(pool, composed)),
    ):
        assert predicted[0] == pytest.approx(mean.loss[0])
        assert predicted[1] - predicted[0] == pytest.approx(mean.loss[1] - mean.loss[0], rel=0.1)  # the slope
        bend = predicted[3] - predicted[0] - 100 * (predicted[1] - predicted[0])
        assert bend == pytest.approx(square / 2 * (1 - 1e-2), rel=1e-3, abs=1e-6)


def whole_square(pool: Pool, tau: TaskVector) -> float:
    """Tau' F tau by the Fisher's definition: E over images and classes of the squared slope of log p along tau."""
    reference, theta0, (images, _) = pool.reference(), pool.backbone, everything(pool)
    assert reference is not None
    state, paths, total = dict(theta0.model.state_dict()), theta0.targets, 0.0

    def log_p(tuned: dict[str, Tensor], image: Tensor) -> Tensor:
        weights = {**state, **{f"{path}.weight": tuned[name] for name, path in paths.items()}}
        return torch.log_softmax(reference(torch.func.functional_call(theta0.model, weights, (image[None],))), 1)[0]

    for image in images:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no derivative in batches
            rows = torch.func.jacrev(log_p)(theta0.trainable, image)
        slopes = torch.stack([(rows[name] * tau[name]).sum((1, 2)) for name in tau]).sum(0)
        total += float((log_p(theta0.trainable, image).exp() * slopes.square()).sum())
    return total / len(images)


def test_gap_by_scale_is_jensens_gap_and_second_order_under_both_fishers(pool: Pool) -> None:
    found, half = gap_path(pool, stream(), (0.5, 1.0)), dict.fromkeys(pool.tasks, 0.125)
    alone = [loss(pool, {t: 0.5}) for t in pool.tasks]
    assert found.scales == (0.5, 1.0)
    assert found.measured[0] == pytest.approx(sum(alone) / 4 - loss(pool, half), rel=1e-4, abs=5e-7)
    assert found.measured[1] == pytest.approx(diagnose(pool, stream()).true_gap)
    assert found.diagonal[1] == pytest.approx(diagnose(pool, stream()).predicted_gap)
    assert (found.diagonal[0], found.whole[0]) == pytest.approx((found.diagonal[1] / 4, found.whole[1] / 4))

    taus = [pool.vector(t) for t in pool.tasks]
    mean = 0.25 * (taus[0] + taus[1] + taus[2] + taus[3])
    assert found.whole[1] == pytest.approx(0.5 * sum(whole_square(pool, tau - mean) for tau in taus) / 4, rel=1e-4)


def test_short_vectors_are_of_second_order(pool: Pool) -> None:
    """Measured in s^2: from one small scale to half of it the same, and unlike that of the vectors as they are."""
    told: list[tuple[int, int]] = []
    found = gap_path(pool, stream(), (0.05, 0.1, 32.0), progress=lambda phase, done, total: told.append((done, total)))
    bends = [gap / s**2 for gap, s in zip(found.measured, found.scales, strict=True)]
    assert bends[0] == pytest.approx(bends[1], rel=0.1)
    assert abs(bends[2] / bends[0] - 1) > 0.2
    assert told == [(i, 16) for i in range(1, 17)]


def test_one_module_alone_has_no_gap(pool: Pool) -> None:
    found = diagnose(pool, stream(), weights={"task02": 1.0})
    assert found.tasks == ("task02",)
    assert found.true_gap == 0
    assert found.predicted_gap == 0
    assert found.cosine_to_composed == pytest.approx((1.0,))


def test_other_weights_and_fewer_images(pool: Pool) -> None:
    found = diagnose(pool, stream(), weights={"task04": 0.25, "task01": 0.75}, per_task=5)
    assert found.tasks == ("task01", "task04")
    assert found.images == 10
    assert found.mean_module_loss == pytest.approx(0.75 * found.module_losses[0] + 0.25 * found.module_losses[1])
    again = diagnose(pool, stream(), weights={"task01": 0.75, "task04": 0.25}, per_task=5)
    told, said = found.record(), again.record()
    assert told.keys() == said.keys()
    for name, value in told.items():  # added in another order: the last digit of a double may differ
        assert said[name] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value)
    assert diagnose(pool, stream(), per_task=5, seed=1).theta0_loss != diagnose(pool, stream(), per_task=5).theta0_loss
    with pytest.raises(InputError, match="sum to 1"):
        diagnose(pool, stream(), weights={"task01": 0.75})


def test_networks_and_curvatures_are_counted(pool: Pool) -> None:
    told: list[tuple[str, int, int]] = []
    diagnose(pool, stream(), per_task=2, progress=lambda *now: told.append(now))
    steps = len(CURVATURES) + 2  # and the Fisher by layers, and all of it
    assert told[:6] == [("networks", i, 6) for i in range(1, 7)]
    assert told[6:] == [("curvatures", i, steps) for i in range(1, steps + 1)]


def numbers(found: Any) -> list[float]:
    """All numbers of a measurement, in order; sums may differ in their last digit from call to call."""
    if isinstance(found, int | float):
        return [float(found)]
    parts = found if isinstance(found, tuple) else (found if isinstance(found, dict) else vars(found)).values()
    return [number for part in parts if not isinstance(part, str) for number in numbers(part)]


@pytest.mark.parametrize("measure", [diagnose, loss_paths, gap_path])
def test_what_is_measured_is_kept_as_it_is_known(pool: Pool, tmp_path: Path, measure: Callable[..., Any]) -> None:
    """Stopped in the middle, it goes on where it was and comes to the same; asked again, no network runs."""
    whole, kept = (
        pytest.approx(numbers(measure(pool, stream(), per_task=3)), rel=1e-9),
        Kept(tmp_path / "kept.json", pool, stream()),
    )

    def stopped(phase: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(pool, stream(), per_task=3, progress=stopped, keep=kept)
    made = list[str]()

    def watched(name: str, work: Callable[[], Any]) -> Any:
        return Kept(tmp_path / "kept.json", pool, stream())(name, lambda: (made.append(name), work())[1])

    before = json.loads((tmp_path / "kept.json").read_text())["rows"]
    assert len(before) >= 4
    assert numbers(measure(pool, stream(), per_task=3, keep=watched)) == whole
    assert made
    assert not before.keys() & set(made)
    count = len(made)
    assert numbers(measure(pool, stream(), per_task=3, keep=watched)) == whole
    assert len(made) == count
    measure(pool, stream(), per_task=2, keep=watched)
    assert len(made) > count


def test_an_empty_pool_has_no_diagnosis(pool: Pool) -> None:
    empty = Pool(pool.path / "none", replace(pool.index, tasks=()), pool.backbone)
    with pytest.raises(InputError, match="no module yet"):
        diagnose(empty, stream())
