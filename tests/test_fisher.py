"""The diagonal Fisher: `exact` against three independent ways to it, the random estimators against `exact`."""

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import REPEATED, backbone, head, inputs, randn, repeated, same, seeded, split_backbone
from intarsia import Backbone, diagonal_fisher
from intarsia.curvature.choices import Estimator
from intarsia.curvature.estimators import logit_vectors
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.curvature.head_fisher import head_fisher
from intarsia.curvature.squares import add_squares_by_products
from intarsia.heads.head import Head

DOUBLE = torch.float64
NETWORKS: dict[str, Callable[[], Backbone]] = {"vit": lambda: backbone(dtype=DOUBLE), "split": split_backbone}


def problem(network: str, classes: int = 3) -> tuple[Backbone, Head]:
    theta0 = NETWORKS[network]()
    width = theta0.features(inputs(1)).shape[1]
    return theta0, head(classes, width)


def flat(sums: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([sums[name].flatten() for name in sorted(sums)])


def by_loops(theta0: Backbone, classifier: Head, images: Tensor) -> dict[str, Tensor]:
    """F = sum_x sum_c p_c (d log p_c / d theta)^2, one image and one class at a time through autograd."""
    weights = {n: theta0.model.get_submodule(path).get_parameter("weight") for n, path in theta0.targets.items()}
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    for w in weights.values():
        w.requires_grad_(True)
    for image in images:
        log_p = torch.log_softmax(classifier(theta0.model(image[None])), 1)[0]
        for c in range(len(classifier)):
            gradients = torch.autograd.grad(log_p[c], list(weights.values()), retain_graph=True)
            for name, g in zip(weights, gradients, strict=True):
                sums[name] += log_p[c].exp().detach() * g.square()
    for w in weights.values():
        w.requires_grad_(False)
    return sums


def by_torch_func(theta0: Backbone, classifier: Head, images: Tensor) -> dict[str, Tensor]:
    """The same by vmap over images of the Jacobian of all classes."""
    state = {name: p.detach() for name, p in theta0.model.named_parameters()}
    tuned = {f"{path}.weight": state.pop(f"{path}.weight") for path in theta0.targets.values()}

    def log_p(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        features = torch.func.functional_call(theta0.model, {**state, **weights}, (image[None],))
        return torch.log_softmax(classifier(features), 1)[0]

    with sdpa_kernel(SDPBackend.MATH):  # the one that has a batching rule
        jacobians = torch.func.vmap(torch.func.jacrev(log_p), in_dims=(None, 0))(tuned, images)  # (N, C, O, I)
        p = torch.func.vmap(log_p, in_dims=(None, 0))(tuned, images).exp()
    return {n: torch.einsum("nc,ncoi->oi", p, jacobians[f"{path}.weight"] ** 2) for n, path in theta0.targets.items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("oracle", [by_loops, by_torch_func], ids=["loops", "torch.func"])
def test_exact_is_the_definition(network: str, oracle: Callable[[Backbone, Head, Tensor], dict[str, Tensor]]) -> None:
    theta0, classifier = problem(network)
    images = inputs(5)
    fisher = diagonal_fisher(theta0, classifier, images.split(4), estimator="exact")
    assert fisher.count == 5
    expected = oracle(theta0, classifier, images)
    assert fisher.sums.keys() == expected.keys() == theta0.trainable.keys()
    for name, f in expected.items():
        assert float(f.min()) > 0
        torch.testing.assert_close(fisher.sums[name], f, rtol=1e-6, atol=1e-14)


def test_single_precision_agrees_with_double() -> None:
    theta0, classifier = problem("vit")
    single = backbone()
    fisher = diagonal_fisher(single, head(3, dtype=torch.float32), [inputs(5, dtype=torch.float32)], estimator="exact")
    expected = by_loops(theta0, classifier, inputs(5))
    assert all(f.dtype == torch.float32 for f in fisher.sums.values())
    assert (flat(fisher.sums) - flat(expected)).norm() < 1e-5 * flat(expected).norm()


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_exact_does_not_depend_on_the_batches(cuts: list[int]) -> None:
    theta0, classifier = problem("split")
    images = inputs(sum(cuts))
    batched = diagonal_fisher(theta0, classifier, images.split(cuts), estimator="exact")
    whole = diagonal_fisher(theta0, classifier, [images], estimator="exact")
    assert batched.count == whole.count == len(images)
    torch.testing.assert_close(flat(batched.sums), flat(whole.sums))
    assert batched.error == pytest.approx(whole.error)


def test_stated_error_is_that_of_the_two_halves() -> None:
    """|F_odd - F_even| / |F|."""
    theta0, classifier = problem("split")
    images = inputs(7)
    fisher = diagonal_fisher(theta0, classifier, images.split(3), estimator="exact")
    odd, even = (flat(by_loops(theta0, classifier, images[k::2])) for k in (1, 0))
    assert fisher.error == pytest.approx(float((odd - even).norm() / (odd + even).norm()))


# The random estimators


def drawn(estimator: Estimator, draws: int, probes: int = 1) -> tuple[Tensor, Tensor, float]:
    """(draws of F (draws, numbers), the exact F, the mean stated error)."""
    theta0, classifier = problem("split", classes=4)
    images, generator = inputs(6), seeded(7)
    exact = flat(by_loops(theta0, classifier, images))
    made = [
        diagonal_fisher(theta0, classifier, [images], estimator=estimator, probes=probes, generator=generator)
        for _ in range(draws)
    ]
    errors = [f.error or 0.0 for f in made]
    return torch.stack([flat(f.sums) for f in made]), exact, sum(errors) / draws


@pytest.mark.parametrize("estimator", ["rademacher", "mc"])
def test_mean_of_many_draws_is_exact(estimator: Estimator) -> None:
    """Within the stated error of one draw over the root of their number; and no entry is off by the z-test."""
    draws = 600
    samples, exact, stated = drawn(estimator, draws)
    off = float((samples.mean(0) - exact).norm() / exact.norm())
    assert 0 < off < 2 * stated / draws**0.5
    z = (samples.mean(0) - exact) / (samples.std(0) / draws**0.5)
    assert float(z.square().mean()) < 2  # 1 expected; the entries hang together, so it scatters
    projections = randn(8, len(exact), seed=3).square() @ samples.T  # (8, draws): sums that weigh the entries anew
    targets = randn(8, len(exact), seed=3).square() @ exact
    z = (projections.mean(1) - targets) / (projections.std(1) / draws**0.5)
    assert float(z.abs().max()) < 4


@pytest.mark.parametrize("estimator", ["rademacher", "mc"])
def test_probes_are_averaged(estimator: Estimator) -> None:
    """Several probes of one batch are the mean of as many draws from the same generator."""
    many, _, _ = drawn(estimator, 1, probes=20)
    single, _, _ = drawn(estimator, 20)
    torch.testing.assert_close(many[0], single.mean(0))


@pytest.mark.parametrize("seed", range(3))
def test_signs_cancel_over_a_cycle_of_equal_images(seed: int) -> None:
    """Four classes make a cycle of four: over equal images one draw is exact, where loose signs would scatter."""
    theta0, classifier = problem("split", classes=4)
    images = inputs(1).expand(8, *inputs(1).shape[1:])
    exact = diagonal_fisher(theta0, classifier, [images], estimator="exact")
    drawn_once = diagonal_fisher(theta0, classifier, [images], estimator="rademacher", generator=seeded(seed))
    torch.testing.assert_close(flat(drawn_once.sums), flat(exact.sums))


def test_pushed_vectors_have_the_fishers_second_moment() -> None:
    """Sum (or mean) of v v^T = diag(p) - p p^T, and no vector has a part along the ones: log p is shift-free."""
    logits = randn(1, 4, seed=5).expand(40_000, 4)
    p = torch.softmax(logits[0], 0)
    expected = p.diag() - p.outer(p)
    exact = torch.stack(logit_vectors(logits[:1], "exact", 1, None))[:, 0]
    torch.testing.assert_close(exact.T @ exact, expected)
    for estimator in ("rademacher", "mc"):
        (v,) = logit_vectors(logits, estimator, 1, seeded(1))
        outer = v[:, :, None] * v[:, None]
        z = (outer.mean(0) - expected) / (outer.std(0) / len(v) ** 0.5)
        assert float(z.abs().max()) < 4
        assert float(v.sum(1).abs().max()) < 1e-12


def test_exact_survives_a_class_of_no_probability() -> None:
    """softmax underflows to 0: log p would be -inf, the Fisher is finite."""
    theta0, classifier = problem("split")
    sure = Head(classifier.weight * 1e4, classifier.bias)
    for estimator in ("exact", "rademacher", "mc"):
        fisher = diagonal_fisher(theta0, sure, [inputs(3)], estimator=estimator, generator=seeded(0))
        assert bool(flat(fisher.sums).isfinite().all())


# The object


def test_fishers_of_unequal_tasks_add_as_sums_over_images() -> None:
    theta0, classifier = problem("split")
    images = inputs(9)
    small, large = (diagonal_fisher(theta0, classifier, [x], estimator="exact") for x in (images[:2], images[2:]))
    whole = diagonal_fisher(theta0, classifier, [images], estimator="exact")
    both = small + large
    assert both.count == 9
    torch.testing.assert_close(flat(both.sums), flat(whole.sums))
    torch.testing.assert_close(flat(both.mean(1e-5)), flat(by_loops(theta0, classifier, images)) / 9 + 1e-5)
    back = both - large
    assert back.count == 2
    torch.testing.assert_close(flat(back.sums), flat(small.sums), rtol=1e-9, atol=1e-12)
    assert float(flat((small - large).sums).min()) == 0  # never below zero


def test_unit_mean_is_one_before_the_floor() -> None:
    fisher = DiagonalFisher({"a": randn(3, 4, seed=1).square(), "b": randn(2, 2, seed=2).square()}, 5)
    unit = fisher.mean(0.0, unit=True)
    assert float(flat(unit).mean()) == pytest.approx(1)
    torch.testing.assert_close(flat(unit) / flat(unit).sum(), flat(fisher.sums) / flat(fisher.sums).sum())
    torch.testing.assert_close(flat(fisher.mean(0.5, unit=True)), flat(unit) + 0.5)


def test_misuse_is_refused() -> None:
    theta0, classifier = problem("split")
    with pytest.raises(ValueError, match="probes = 0"):
        diagonal_fisher(theta0, classifier, [inputs(1)], probes=0)
    with pytest.raises(ValueError, match="at least one image"):
        diagonal_fisher(theta0, classifier, [])
    with pytest.raises(ValueError, match="no images has no mean"):
        DiagonalFisher({"a": torch.zeros(1)}, 0).mean()
    with pytest.raises(ValueError, match="different weights"):
        _ = DiagonalFisher({"a": torch.zeros(1)}, 1) + DiagonalFisher({"b": torch.zeros(1)}, 1)


def test_leaves_the_network_as_it_was_even_after_an_error() -> None:
    theta0, classifier = problem("vit")
    state = {k: v.clone() for k, v in theta0.model.state_dict().items()}

    def broken(features: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with torch.no_grad():  # a caller's mode does not matter
        diagonal_fisher(theta0, classifier, [inputs(2)], generator=seeded(0))
    with pytest.raises(KeyboardInterrupt):
        diagonal_fisher(theta0, broken, [inputs(2)])
    assert same(state, theta0.model.state_dict())
    assert not any(p.requires_grad or p.grad is not None for p in theta0.model.parameters())
    assert not any(m._forward_hooks for m in theta0.model.modules())


def test_frozen_parts_of_a_head_module_get_no_gradient() -> None:
    theta0, _ = problem("split")
    classifier = nn.Linear(8, 3, dtype=DOUBLE).requires_grad_(False)
    as_module = diagonal_fisher(theta0, classifier, [inputs(3)], estimator="exact")
    as_head = diagonal_fisher(theta0, Head(classifier.weight, classifier.bias), [inputs(3)], estimator="exact")
    assert same(as_module.sums, as_head.sums)


def test_add_squares_is_chunked_without_a_trace() -> None:
    a, g = randn(7, 3, 5, seed=1), randn(7, 3, 4, seed=2)
    expected = 0.5 * torch.einsum("bno,bni->boi", g, a).square().sum(0) + 1
    for chunk in (1, 45, 1 << 20):
        into = torch.ones(4, 5, dtype=DOUBLE)
        add_squares_by_products(into, a, g, 0.5, chunk)
        torch.testing.assert_close(into, expected)


def test_head_fisher_is_its_autograd() -> None:
    classifier, features = head(3, 5), randn(11, 5, seed=9)
    expected = [torch.zeros(3, 5, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)]
    weight, bias = (t.clone().requires_grad_() for t in (classifier.weight, classifier.bias))
    for f in features:
        log_p = torch.log_softmax(weight @ f + bias, 0)
        for c in range(3):
            gradients = torch.autograd.grad(log_p[c], [weight, bias], retain_graph=True)
            for i in range(2):
                expected[i] += log_p[c].exp().detach() * gradients[i].square() / len(features)
    got = head_fisher(features, classifier.weight, classifier.bias)
    torch.testing.assert_close(list(got), expected)
    some = head_fisher(features, classifier.weight, classifier.bias, slice(1, 3))
    torch.testing.assert_close(list(some), [e[1:3] for e in expected])


# A weight used more than once in one forward


@pytest.mark.parametrize("how", REPEATED)
def test_calls_of_one_weight_are_summed_before_they_are_squared(how: str) -> None:
    theta0, classifier, images = repeated(how), head(3, 8), inputs(5)
    assert list(theta0.trainable) == ["blocks.fc1.weight", "blocks.fc2.weight"]
    fisher = diagonal_fisher(theta0, classifier, images.split(3), estimator="exact")
    expected = by_loops(theta0, classifier, images)
    torch.testing.assert_close(dict(fisher.sums), expected)
    assert not any(m._forward_hooks for m in theta0.model.modules())


@pytest.mark.parametrize("count", [1, 64, 65])
def test_any_number_of_images_in_batches_of_64(count: int) -> None:
    theta0, classifier = problem("split")
    images = inputs(count)
    fisher = diagonal_fisher(theta0, classifier, images.split(64), estimator="exact")
    torch.testing.assert_close(flat(fisher.sums), flat(by_loops(theta0, classifier, images)))
    assert fisher.count == count
