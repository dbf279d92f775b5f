"""The peers of 2023 to 2026, each on a case whose answer is known; their contract is in test_baselines."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import GREY, QUICK, backbone, randn, seeded, stream
from intarsia import LoRA, TaskStream, TaskVector
from intarsia.adapters import Attachment
from intarsia.baselines.ewc import EWC
from intarsia.baselines.peers import tuna
from intarsia.baselines.peers.alignment import ClassGaussians, align
from intarsia.baselines.peers.ewc_lora import EWCLoRA, held_by
from intarsia.baselines.peers.lca import LCA, leading, local_loss
from intarsia.baselines.peers.ranpac import RIDGES, RandomFeatures, RanPAC, RidgeSums, best_ridge
from intarsia.baselines.peers.slca import SLCA, normalized_cross_entropy, symmetric_cross_entropy
from intarsia.baselines.peers.tuna import TUNA, Routed
from intarsia.baselines.protocol import Baseline, TaskResult
from intarsia.class_stats.drift import fit_drift
from intarsia.heads.head import Head
from intarsia.merging.model import ComposedModel
from intarsia.training.settings import Settings


def learned(method: Baseline, tasks: TaskStream | None = None, settings: Settings = QUICK) -> list[TaskResult]:
    return list(method.train(backbone(), tasks or stream(3), settings))


def composed(result: TaskResult) -> ComposedModel:
    assert isinstance(result.model, ComposedModel)
    return result.model


def features(result: TaskResult, images: Tensor) -> Tensor:
    return composed(result).network(GREY.normalize(images)).detach()


def images_of(tasks: TaskStream) -> Tensor:
    return torch.cat([task.train.tensor(GREY) for task in tasks])


# RanPAC


def test_ranpac_is_ridge_regression_on_the_random_features_of_all_images_at_once() -> None:
    tasks, ridge = stream(3), 1e-3
    last = learned(RanPAC(width=24, ridge=ridge, adapt=False), tasks)[-1]
    network = composed(last).network
    assert isinstance(network, RandomFeatures)
    plain = backbone().features(GREY.normalize(images_of(tasks)))
    h = (plain @ network.projection).relu().double()
    torch.testing.assert_close(features(last, images_of(tasks)).double(), h, rtol=1e-4, atol=1e-4)
    labels = torch.cat([task.train.labels + 2 * i for i, task in enumerate(tasks)])
    size = h.square().sum() / 24
    stacked = torch.cat([h, (ridge * size).sqrt() * torch.eye(24, dtype=h.dtype)])  # ridge as plain least squares
    wanted = torch.cat([F.one_hot(labels, 6).double(), torch.zeros(24, 6, dtype=h.dtype)])
    expected = torch.linalg.lstsq(stacked, wanted).solution
    torch.testing.assert_close(composed(last).head.weight.double(), expected.T, rtol=1e-3, atol=1e-4)


def test_ranpac_without_adaptation_does_not_know_in_which_order_tasks_came() -> None:
    tasks, x = stream(3), images_of(stream(3))
    method = RanPAC(width=24, ridge=1e-3, adapt=False)
    first, other = (learned(method, tasks.subset(order))[-1] for order in ([0, 1, 2], [2, 0, 1]))
    straight = composed(other).logits(x)[:, [2, 3, 4, 5, 0, 1]]  # columns are in the order of the tasks
    torch.testing.assert_close(composed(first).logits(x), straight, rtol=1e-3, atol=1e-4)


def test_ridge_sums_add_up_and_lift_what_rounding_makes_indefinite() -> None:
    h, y = randn(9, 5, seed=1), randn(9, 2, seed=2)
    empty = RidgeSums(torch.zeros(5, 5, dtype=h.dtype), torch.zeros(5, 2, dtype=h.dtype))
    whole, parts = empty.add(h, y), empty.add(h[:4], y[:4]).add(h[4:], y[4:])
    torch.testing.assert_close(whole.gram, parts.gram)
    torch.testing.assert_close(whole.moment, parts.moment)
    assert empty.add(h, y).stored() == 15 + 10
    flat = empty.add(torch.ones(9, 5, dtype=h.dtype), y)  # rank one
    assert bool(flat.solve(1e-20).isfinite().all())


def test_the_ridge_is_the_one_with_the_least_square_loss_on_held_out_images() -> None:
    """Held-out images like the others want the smallest; those where all is the other way round, the largest."""
    h, y = randn(40, 8, seed=1), randn(40, 8, seed=1) @ randn(8, 2, seed=3)
    empty = RidgeSums(torch.zeros(8, 8, dtype=h.dtype), torch.zeros(8, 2, dtype=h.dtype))
    sums = empty.add(h[8:], y[8:])
    assert best_ridge(sums, h[:8], y[:8]) == min(RIDGES)
    assert best_ridge(sums, h[:8], -y[:8]) == max(RIDGES)


def test_ranpac_adapts_to_the_first_task_alone() -> None:
    x = images_of(stream(3))
    stages = learned(RanPAC(width=24))
    assert all(torch.equal(features(stages[0], x), features(stage, x)) for stage in stages[1:])
    still = learned(RanPAC(width=24, adapt=False))[0]
    assert not torch.allclose(features(stages[0], x), features(still, x), rtol=1e-2)
    seconds = [stage.training_seconds > 0 for stage in stages]
    assert seconds == [True, False, False]


def test_ranpac_standardizes_by_the_first_task() -> None:
    first = stream(3)[0].train.tensor(GREY)
    standard, plain = (
        composed(learned(RanPAC(width=8, adapt=False, standardize=s))[-1]).network for s in (True, False)
    )
    assert isinstance(standard, RandomFeatures) and isinstance(plain, RandomFeatures)
    assert not plain.shift.any()
    x = backbone().features(GREY.normalize(first))
    torch.testing.assert_close(standard.shift, x.mean(0), rtol=1e-4, atol=1e-5)
    spreads = x.std(0, correction=0)
    torch.testing.assert_close(standard.projection * spreads[:, None], plain.projection, rtol=1e-3, atol=1e-4)


# classifier alignment, SLCA++


def test_class_gaussians_are_means_and_covariances_and_move_with_the_features() -> None:
    x, labels = randn(4000, 3, seed=1) @ randn(3, 3, seed=2), torch.arange(4000) % 2
    x[labels == 1] = 2 + 3 * x[labels == 1]
    found = ClassGaussians.of(x, labels, 2)
    torch.testing.assert_close(found.centres, torch.stack([x[labels == c].mean(0) for c in (0, 1)]))
    covariances = found.bases @ found.bases.transpose(1, 2)
    expected = torch.stack([x[labels == c].T.cov() for c in (0, 1)])
    torch.testing.assert_close(covariances, expected, rtol=0.02, atol=0.02)  # it is shrunk a little
    one = ClassGaussians.of(x, labels, 2, shared=True)
    torch.testing.assert_close((one.bases @ one.bases.transpose(1, 2))[0], expected.mean(0), rtol=0.02, atol=0.02)
    assert (found.stored(), one.stored()) == (6 + 12, 6 + 6)
    lonely = ClassGaussians.of(x[:9], torch.tensor([0] * 8 + [1]), 2)  # the second has no covariance of its own
    torch.testing.assert_close(lonely.bases, ClassGaussians.of(x[:8], torch.zeros(8), 1).bases)
    drawn = found.sample(20000, seeded(0))
    torch.testing.assert_close(drawn.mean(1), found.centres, rtol=0.05, atol=0.05)
    torch.testing.assert_close(drawn[1].T.cov(), covariances[1], rtol=0.05, atol=0.1)

    turn, shift = torch.eye(3).double() + 0.3 * randn(3, 3, seed=5), randn(3, seed=6)
    after = x @ turn.T + shift
    moved, wanted = found.moved(fit_drift(x, after)), ClassGaussians.of(after, labels, 2)
    torch.testing.assert_close(moved.centres, wanted.centres, rtol=0.05, atol=0.1)
    torch.testing.assert_close(
        moved.bases @ moved.bases.transpose(1, 2), wanted.bases @ wanted.bases.transpose(1, 2), rtol=0.1, atol=0.3
    )


def test_alignment_tells_drawn_classes_apart_whatever_mean_their_features_share() -> None:
    """A head that puts every feature into one class, before; nearly all right, after."""
    centres = 100 + torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    tasks = [
        ClassGaussians(centres[:2], 0.1 * torch.eye(2)[None]),
        ClassGaussians(centres[2:], 0.1 * torch.eye(2)[None]),
    ]
    weight = randn(4, 2, seed=1).float()
    start = Head(weight, -weight @ centres.mean(0))
    x, y = (
        torch.cat([task.sample(50, seeded(9)) for task in tasks]).flatten(0, 1),
        torch.arange(4).repeat_interleave(50),
    )
    for criterion in (
        partial(normalized_cross_entropy, sizes=(2, 2)),
        lambda draws, labels: F.cross_entropy(draws[0], labels),
    ):
        aligned = align(start, tasks, criterion, lr=0.1, epochs=20, generator=seeded(1))
        assert float((start(x).argmax(1) == y).float().mean()) < 0.5
        assert float((aligned(x).argmax(1) == y).float().mean()) > 0.99


def test_the_symmetric_cross_entropy_is_both_ways_at_once() -> None:
    logits, labels = randn(5, 3, seed=1), torch.tensor([0, 1, 2, 1, 0])
    forward = F.cross_entropy(logits, labels)
    target = F.one_hot(labels, 3).double().clamp_min(1e-4)
    backward = -(torch.softmax(logits, 1) * target.log()).sum(1).mean()
    for b in (0.0, 0.3, 1.0):
        found = symmetric_cross_entropy(logits, labels, reverse=b)
        torch.testing.assert_close(found, (1 - b) * forward + b * backward)


def test_normalized_logits_do_not_know_their_length() -> None:
    logits, labels = randn(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
    short, long = (normalized_cross_entropy([s * logits], labels, sizes=(2, 1)) for s in (0.01, 100.0))
    torch.testing.assert_close(short, long)
    length = (logits[:, :2].norm(dim=1) + logits[:, 2].abs()) / 2
    torch.testing.assert_close(short, F.cross_entropy(10 * logits / length[:, None], labels))


def moved_by(method: Baseline, settings: Settings = QUICK) -> float:
    """How far the features of the first task's images are from theta0's."""
    x = stream(3)[0].train.tensor(GREY)
    return float((features(learned(method, settings=settings)[-1], x) - backbone().features(GREY.normalize(x))).norm())


def test_slca_trains_the_network_slower_than_the_head() -> None:
    fast, slow, never = (moved_by(SLCA(slow=s)) for s in (1.0, 0.01, 0.0))
    assert 0 == never < slow < 0.1 * fast


def test_slca_answers_with_an_aligned_head_and_goes_on_with_those_it_trained() -> None:
    """Without any alignment the first task's rows stay as they were; alignment changes the answers, not the network."""
    x = images_of(stream(3))
    plain, aligned = (learned(SLCA(head_epochs=e)) for e in (0, 3))
    rows = composed(plain[0]).head.weight
    torch.testing.assert_close(composed(plain[2]).head.weight[:2], rows, rtol=1e-4, atol=1e-5)
    assert torch.equal(composed(aligned[0]).head.weight, rows)
    assert not torch.allclose(composed(aligned[2]).head.weight[:2], rows, rtol=1e-2)
    assert all(torch.equal(features(a, x), features(b, x)) for a, b in zip(plain, aligned, strict=True))


# LCA


def test_the_leading_directions_have_the_share_of_the_norm_asked_for() -> None:
    u, v = (torch.linalg.qr(randn(n, 3, seed=n)).Q for n in (5, 4))
    tau = (u * torch.tensor([3.0, 2.0, 1.0]).double()) @ v.T  # shares 9/14, 13/14, 1
    for energy, kept in ((0.5, 1), (0.9, 2), (0.95, 3), (1.0, 3)):
        expected = (u[:, :kept] * torch.tensor([3.0, 2.0, 1.0]).double()[:kept]) @ v[:, :kept].T
        found = leading(TaskVector({"a": tau, "zero": torch.zeros(2, 2).double()}), energy)
        torch.testing.assert_close(found["a"], expected)
        assert not found["zero"].any()


def test_lca_merges_a_part_of_what_a_task_changed() -> None:
    """After the first task M is a tau; all of it merged is the trained network, so half of it is half as far."""

    def vectors(part: float, energy: float = 1.0) -> list[dict[str, Tensor]]:
        start = backbone().trainable
        stages = learned(LCA(part=part, energy=energy))
        networks = [composed(stage).network for stage in stages]
        paths = backbone().targets
        return [{n: net.get_parameter(f"{paths[n]}.weight") - w for n, w in start.items()} for net in networks]

    whole, half, lead = vectors(1.0), vectors(0.5), vectors(1.0, 0.9)
    for name, tau in whole[0].items():
        torch.testing.assert_close(half[0][name], tau / 2, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(lead[0][name], leading(TaskVector({name: tau}), 0.9)[name], rtol=1e-2, atol=1e-4)
        assert not torch.allclose(whole[1][name], tau, rtol=1e-2)


def test_the_local_loss_adds_what_two_draws_of_a_class_differ_by() -> None:
    first, second, labels = randn(4, 3, seed=1), randn(4, 3, seed=2), torch.tensor([0, 1, 2, 0])
    one, other = (F.cross_entropy(z, labels, reduction="none") for z in (first, second))
    found = local_loss([first, second], labels, weight=0.1)
    torch.testing.assert_close(found, one.mean() + 0.1 * (one - other).abs().mean())
    torch.testing.assert_close(local_loss([first, first], labels, weight=9.0), one.mean())


# EWC-LoRA


def test_ewc_lora_holds_the_product_and_not_its_factors() -> None:
    """A and B scaled against each other leave the product, and the penalty, as they were."""
    with backbone().attach(LoRA(2), seeded(0)) as adapter:
        with torch.no_grad():
            for layer in adapter.layers.values():
                layer.adapter_parameters["B"].add_(0.1)
        anchor = adapter.vector()
        fisher = {name: torch.rand(tau.shape, generator=seeded(1)) for name, tau in anchor.items()}
        assert held_by(adapter, {}, {}, 3.0) is None
        zero = {name: torch.zeros_like(tau) for name, tau in anchor.items()}
        expected = 1.5 * sum(float((fisher[n] * tau.square()).sum()) for n, tau in anchor.items())
        with torch.no_grad():
            for layer in adapter.layers.values():
                layer.adapter_parameters["A"].mul_(2)
                layer.adapter_parameters["B"].div_(2)
        found, none = held_by(adapter, fisher, zero, 3.0), held_by(adapter, fisher, anchor, 3.0)
        assert found is not None and none is not None
        assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
        assert float(none.detach()) == pytest.approx(0, abs=1e-6)


def test_ewc_lora_held_hard_stays_where_the_first_task_ended() -> None:
    x = images_of(stream(3))

    def apart(strength: float) -> float:
        stages = learned(EWCLoRA(strength=strength))
        return float((features(stages[-1], x) - features(stages[0], x)).norm())

    assert apart(1e6) < 0.3 * apart(0.0)


def test_ewc_lora_leaves_heads_of_earlier_tasks_and_keeps_one_lora() -> None:
    stages = learned(EWCLoRA())
    rows = [composed(stage).head.weight for stage in stages]
    assert torch.equal(rows[0], rows[2][:2])
    assert torch.equal(rows[1], rows[2][:4])
    growth = {b.stored - a.stored for a, b in pairwise(stages)}
    assert growth == {2 * 17}  # a task's head: weights and biases of two classes


def test_ewc_lora_with_one_head_for_all_classes_is_ewc_of_a_lora() -> None:
    """Whose penalty is on the dense update, whatever adapter makes it."""
    x = images_of(stream(3))
    one, other = (learned(method)[-1] for method in (EWCLoRA(own_classes=False), EWC(adapter=LoRA())))
    assert torch.equal(composed(one).logits(x), composed(other).logits(x))
    assert one.stored == other.stored


# TUNA


def test_tunas_universal_adapter_elects_signs_and_takes_the_largest() -> None:
    rows = ([3.0, -1.0, 0.0, 2.0], [-1.0, -4.0, 0.0, -2.0], [-1.0, 2.0, 0.5, 0.0])
    merged = tuna.universal([TaskVector({"a": torch.tensor(row)}) for row in rows])
    assert merged["a"].tolist() == [3.0, -4.0, 0.5, 0.0]
    (alone,) = rows[:1]
    assert tuna.universal([TaskVector({"a": torch.tensor(alone)})])["a"].tolist() == alone


def test_tuna_answers_with_the_surest_adapter_and_the_universal_one() -> None:
    """Networks merged by hand; the surest is found image by image."""
    tasks, theta0 = stream(3), backbone()
    model = learned(TUNA(adapter=LoRA(2)))[-1].model
    assert isinstance(model, Routed)
    x = torch.cat([task.test.tensor(GREY) for task in tasks])

    def answer(update: TaskVector) -> Tensor:
        network = backbone()
        for name, weight in network.weights.items():
            weight.data += update[name]
        return torch.softmax(model.head(network.features(GREY.normalize(x))), 1)

    alone = [answer(tuna.dense(theta0, state)) for state in model.adapters.values()]
    common = answer(tuna.universal([tuna.dense(theta0, state) for state in model.adapters.values()]))
    expected = []
    for i, row in enumerate(common):
        entropies = [-(p[i] * p[i].log()).sum() for p in alone]
        expected.append((row + alone[int(torch.stack(entropies).argmin())][i]) / 2)
    torch.testing.assert_close(model.logits(x).exp(), torch.stack(expected), rtol=1e-3, atol=1e-4)


def test_tuna_pushes_up_projections_apart() -> None:
    """The push is the mean cosine of columns, summed over earlier adapters, whatever their lengths."""
    with backbone().attach(LoRA(2), seeded(0)) as adapter:
        state = {f"{n}.B": torch.eye(len(up))[:, : up.shape[1]] for n, up in _ups(adapter).items()}
        assert tuna.overlap(adapter, [], 1.0) is None
        start = tuna.overlap(adapter, [state], 1.0)
        assert start is not None
        start.backward()
        assert not any(up.grad is None or bool(up.grad.any()) for up in _ups(adapter).values())  # at zero no push
        ups = _ups(adapter)
        for shift, mean in ((0, sum(1 / up.shape[1] for up in ups.values()) / len(ups)), (6, 0.0)):
            with torch.no_grad():
                for up in ups.values():
                    up.copy_(7 * torch.eye(len(up))[:, shift : shift + up.shape[1]])
            found = tuna.overlap(adapter, [state, state], 3.0)
            assert found is not None
            assert float(found.detach()) == pytest.approx(3 * 2 * mean)


def test_a_strong_push_leaves_adapters_less_alike() -> None:
    def alike(weight: float) -> float:
        settings = replace(QUICK, epochs=20, lr=2e-3)
        model = learned(TUNA(adapter=LoRA(2), orthogonality=weight, continued=False), stream(2), settings)[-1].model
        assert isinstance(model, Routed)
        first, second = model.adapters.values()
        cosines = [F.normalize(first[n], dim=0).T @ F.normalize(second[n], dim=0) for n in first if n.endswith(".B")]
        return sum(float(c.abs().mean()) for c in cosines)

    assert alike(10.0) < 0.7 * alike(0.0)


def _ups(adapter: Attachment) -> dict[str, Tensor]:
    return {name: layer.adapter_parameters["B"] for name, layer in adapter.layers.items()}


def test_tuna_continues_an_adapter_where_it_is_asked_to() -> None:
    still = replace(QUICK, lr=0.0)

    def after(continued: bool) -> list[TaskVector]:
        model = learned(TUNA(adapter=LoRA(2), continued=continued), settings=still)[-1].model
        assert isinstance(model, Routed)
        return [TaskVector(state) for state in model.adapters.values()]

    first, second, _ = after(True)
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second, _ = after(False)
    assert not all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", [TUNA(head_epochs=1), SLCA(head_epochs=1), LCA(head_epochs=1)])
def test_one_covariance_per_task_is_kept_where_it_is_asked_for(method: TUNA | SLCA | LCA) -> None:
    own, shared = (learned(replace(method, shared=s))[-1].stored for s in (False, True))  # pyright: ignore
    assert own - shared == 3 * 16 * 17 // 2
