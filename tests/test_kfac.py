"""Kronecker-factored curvatures against what they stand for: J^T J by derivatives, images one by one, curvlinops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from curvlinops import EKFACLinearOperator, GGNLinearOperator, KFACLinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import (
    ADAPTERS,
    GREY,
    KINDS,
    QUICK,
    backbone,
    head,
    inputs,
    newton,
    randn,
    redraw,
    same,
    seeded,
    shake,
    split_backbone,
    stream,
)
from intarsia import IEL, ITA, Backbone, InputError, LoRA, Pool, Training, diagnose, learn
from intarsia.adapters import AdaptedLinear, Adapter
from intarsia.curvature import CURVATURES, Curvature, Metric
from intarsia.curvature.choices import CurvatureKind, CurvatureOf
from intarsia.curvature.kronecker.ekfac import ekfac
from intarsia.curvature.kronecker.kfac import kfac
from intarsia.curvature.linearized import Tangent
from intarsia.evaluation.gaps import layer_by_layer, predicted_gaps, whole_fisher_squares
from intarsia.regularizers.quadratic import Quadratic
from intarsia.store.verify import verify
from intarsia.task_vector import TaskVector
from intarsia.training.fine_tuning import Configuration, fine_tune
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState
from intarsia.training.task import prepare

KINDS_OF_IT: tuple[CurvatureKind, ...] = ("kfac", "ekfac")
each_kind = pytest.mark.parametrize("kind", KINDS_OF_IT)


def linear() -> Backbone:
    """One layer: features are W x, one token per image."""
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    return Backbone(redraw(model, 0, torch.float64), name="linear", preprocessing=GREY, targets=["1"])


def of_features(
    theta0: Backbone, kind: str, count: int = 12, like: Curvature | None = None, seed: int = 0
) -> Curvature:
    return CURVATURES[kind](theta0, None, [inputs(count, seed)], estimator="exact", like=like)


def only(theta0: Backbone, name: str, tau: Tensor) -> TaskVector:
    """A task vector that is zero but for one weight."""
    return TaskVector({n: tau if n == name else torch.zeros_like(w) for n, w in theta0.trainable.items()})


def drift(theta0: Backbone, images: Tensor, tau: TaskVector) -> float:
    """Mean over images of |J tau|^2, by forward derivatives."""
    _, along = Tangent(theta0)(images, tau)
    return float(along.square().sum()) / len(images)


def gradients(theta0: Backbone, images: Tensor) -> dict[str, Tensor]:
    """(images, D, O, I) per weight: the gradients of every image's features, one after another."""
    weights = theta0.weights
    for w in weights.values():
        w.requires_grad_(True)
    try:
        rows: list[list[tuple[Tensor, ...]]] = [
            [torch.autograd.grad(f, list(weights.values()), retain_graph=True) for f in theta0.model(image[None])[0]]
            for image in images
        ]
    finally:
        for w in weights.values():
            w.requires_grad_(False)
    return {n: torch.stack([torch.stack([g[i] for g in row]) for row in rows]) for i, n in enumerate(weights)}


# What they stand for


@each_kind
@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_one_layer_is_exact(kind: CurvatureKind, estimator: str) -> None:
    """Random signs too: they are rows of a Hadamard matrix, used up over 8 images."""
    theta0, images = linear(), inputs(16)
    made = CURVATURES[kind](theta0, None, [images], estimator=estimator, generator=seeded(1))  # pyright: ignore
    tau = only(theta0, "1.weight", randn(5, 64, seed=2))
    exact = drift(theta0, images, tau)
    tolerance = 1e-9 if estimator == "exact" or kind == "kfac" else 0.6  # the others have each image's own draw
    assert 2 * float(made.mean(0.0).value(tau)) == pytest.approx(exact, rel=tolerance)


def test_one_token_per_image_is_exact_where_inputs_are_alike() -> None:
    """B x A is the mean of g g^T x a a^T if a is the same in every image: here an image that is seen 6 times."""
    theta0, images = split_backbone(), inputs(1).repeat(6, 1, 1, 1)
    made = kfac(theta0, None, [images], estimator="exact").mean(0.0)
    name = "mlp.fc1.weight"
    tau = only(theta0, name, randn(8, 8, seed=3))
    assert 2 * float(made.value(tau)) == pytest.approx(drift(theta0, images, tau), rel=1e-10)


@each_kind
def test_the_trace_is_nearly_that_of_the_gauss_newton_matrix(kind: CurvatureKind) -> None:
    """KFAC's is as good as its factors are independent: within 35 % on a vision transformer."""
    theta0, images = backbone(0, torch.float64), inputs(12)
    made = of_features(theta0, kind)
    for name, g in gradients(theta0, images).items():
        found = float(made.mean(0.0).form(name).diagonal.sum())  # pyright: ignore[reportAttributeAccessIssue]
        expected = float(g.square().sum()) / len(images)
        assert found == pytest.approx(expected, rel=0.35 if kind == "kfac" else 1e-9), name


def test_along_random_directions_a_vision_transformers_drift_is_seen() -> None:
    """Root mean square error over 15 directions per layer, of the drift's: 35 % at most, and less than a diagonal's."""
    theta0, images = backbone(0, torch.float64), inputs(64)
    metrics = {k: CURVATURES[k](theta0, None, [images], estimator="exact").mean(0.0) for k in CURVATURES}
    errors: dict[str, list[float]] = {kind: [] for kind in metrics}
    for name, w in theta0.trainable.items():
        taus = [only(theta0, name, randn(*w.shape, seed=s)) for s in range(15)]
        exact = torch.tensor([drift(theta0, images, tau) for tau in taus])
        for kind, metric in metrics.items():
            found = torch.tensor([2 * float(metric.value(tau)) for tau in taus])
            errors[kind].append(float((found - exact).norm() / exact.norm()))
    assert max(errors["kfac"]) < 0.35, errors
    assert max(errors["ekfac"]) < 0.32, errors
    mean = {kind: sum(each) / len(each) for kind, each in errors.items()}
    assert mean["ekfac"] < mean["kfac"] < 0.65 * mean["diagonal"], mean


def test_a_task_vector_that_the_features_see_is_seen_by_factors_and_not_by_a_diagonal() -> None:
    """Along the layer's own leading direction (that of most drift) the diagonal misses most of it."""
    theta0, images = backbone(0, torch.float64), inputs(24)
    metrics = {k: CURVATURES[k](theta0, None, [images], estimator="exact").mean(0.0) for k in CURVATURES}
    for name, g in gradients(theta0, images).items():
        rows = g.flatten(0, 1).flatten(1)
        leading = torch.linalg.svd(rows, full_matrices=False).Vh[0].view_as(theta0.trainable[name])
        tau = only(theta0, name, leading)
        exact = drift(theta0, images, tau)
        seen = {k: 2 * float(metric.value(tau)) / exact for k, metric in metrics.items()}
        assert seen["diagonal"] < 0.35, (name, seen)
        assert min(seen[kind] for kind in KINDS_OF_IT) > 2 * seen["diagonal"], (name, seen)


def test_what_tokens_have_in_common_is_seen_in_the_eigenbasis_and_not_token_by_token() -> None:
    """Features that are a mean of 8 tokens which are all alike: KFAC sees an eighth of the drift."""
    theta0 = split_backbone()
    images = inputs(12)[:, :, :1].expand(12, 1, 8, 8)
    name = "blocks.0.attn.v.weight"
    tau = only(theta0, name, randn(8, 8, seed=1))
    exact = drift(theta0, images, tau)
    seen = {
        k: 2 * float(CURVATURES[k](theta0, None, [images], estimator="exact").mean(0.0).value(tau)) / exact
        for k in KINDS_OF_IT
    }
    assert seen["kfac"] < 0.2, seen
    assert 0.6 < seen["ekfac"] < 1.5, seen


def test_the_diagonal_in_the_eigenbasis_is_that_of_images_one_by_one() -> None:
    theta0, images = backbone(0, torch.float64), inputs(9)
    made = ekfac(theta0, None, images.split(4), estimator="exact")
    for name, g in gradients(theta0, images).items():
        turned = made.left[name].T @ g @ made.right[name]
        torch.testing.assert_close(made.sums[name], turned.square().sum((0, 1)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("net", ["split", "vit"])
def test_curvlinops_computes_the_same(net: str) -> None:
    """Where every token reaches the features; else (last block, class token) we are nearer to the Gauss-Newton."""
    theta0 = split_backbone() if net == "split" else backbone(0, torch.float64)
    images = inputs(12)
    data = [(images, torch.zeros(12, theta0.width, dtype=torch.float64))]
    ours = {k: of_features(theta0, k).mean(0.0) for k in ("kfac", "ekfac")}
    names = list(theta0.weights)
    operators: dict[str, Any] = {"kfac": KFACLinearOperator, "ekfac": EKFACLinearOperator, "whole": GGNLinearOperator}
    for name, w in theta0.weights.items():
        taus, found = randn(*w.shape, 20, seed=4), dict[str, Tensor]()
        w.requires_grad_(True)
        with sdpa_kernel(SDPBackend.MATH):
            for key, operator in operators.items():
                options = {} if key == "whole" else {"fisher_type": "type-2"}
                loss = nn.MSELoss(reduction="sum")  # its Hessian is 2 I
                made = operator(theta0.model, loss, [w], data, check_deterministic=False, **options)
                found[key] = (made @ [taus])[0] / 24
        w.requires_grad_(False)
        for kind, metric in ours.items():
            mine = torch.stack([metric.gradient(name, tau) for tau in taus.unbind(2)], 2)
            if net == "vit" and name in names[-3:]:
                assert (mine - found["whole"]).norm() < (found[kind] - found["whole"]).norm(), (name, kind)
            else:
                torch.testing.assert_close(mine, found[kind], rtol=1e-9, atol=1e-12)


def test_under_heads_it_is_the_fisher_of_their_softmax() -> None:
    theta0, images, heads = linear(), inputs(16), head(3, 5)
    made = kfac(theta0, heads, [images], estimator="exact")
    p = torch.softmax(heads(theta0.features(images)), 1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = torch.einsum("cd,ncb,be->de", heads.weight, middle, heads.weight)
    torch.testing.assert_close(made.outputs["1.weight"], expected)
    torch.testing.assert_close(made.inputs["1.weight"], images.flatten(1).T @ images.flatten(1))


@each_kind
def test_random_draws_average_to_the_exact_curvature(kind: CurvatureKind) -> None:
    theta0, images = split_backbone(), inputs(16)
    like = of_features(theta0, "ekfac", 16)
    exact = of_features(theta0, kind, 16, like).tensors()
    for estimator in ("rademacher", "mc"):
        made = CURVATURES[kind](
            theta0, None, [images], estimator=estimator, probes=200, generator=seeded(3), like=like
        ).tensors()
        for name, value in exact.items():
            apart = float((made[name] - value).norm() / value.norm())
            assert apart < 0.1, (estimator, name, apart)


# Sums


@each_kind
def test_tasks_add_up_whatever_their_sizes(kind: CurvatureKind) -> None:
    theta0 = split_backbone()
    first = of_features(theta0, kind, 6)
    second = of_features(theta0, kind, 10, first, seed=1)
    both = CURVATURES[kind](theta0, None, [inputs(6), inputs(10, 1)], estimator="exact", like=first)
    total = first + second
    assert total.count == 16
    for name, value in both.tensors().items():
        torch.testing.assert_close(total.tensors()[name], value)
    for name, value in (total - second).tensors().items():
        torch.testing.assert_close(value, first.tensors()[name])
    assert sum(v.numel() for v in total.tensors().values()) == sum(v.numel() for v in first.tensors().values())


def test_other_bases_are_not_added() -> None:
    theta0 = split_backbone()
    with pytest.raises(ValueError, match="different eigenbases"):
        _ = of_features(theta0, "ekfac") + of_features(theta0, "ekfac", seed=1)


@each_kind
def test_unit_scaling_makes_the_mean_diagonal_one(kind: CurvatureKind) -> None:
    theta0 = backbone(0, torch.float64)
    metric = of_features(theta0, kind).mean(1e-5, unit=True)
    basis = total = 0
    for name, w in theta0.trainable.items():
        assert w.ndim == 2
        total += float(metric.form(name).diagonal.sum())  # pyright: ignore[reportAttributeAccessIssue]
        basis += w.numel()
    assert total / basis == pytest.approx(1 + 1e-5, rel=1e-9)


def test_no_image_has_no_mean_and_no_estimate() -> None:
    theta0 = split_backbone()
    for kind in KINDS_OF_IT:
        one = of_features(theta0, kind)
        with pytest.raises(ValueError, match="no images"):
            (one - one).mean()
        with pytest.raises(ValueError, match="at least one image"):
            CURVATURES[kind](theta0, None, [])


# Steps and penalties


def values(layer: AdaptedLinear) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in layer.adapter_parameters.items()}


@pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
@pytest.mark.parametrize("pulled", [False, True])
@each_kind
def test_the_proximal_step_is_that_of_a_dense_solve(kind: CurvatureKind, adapter: Adapter, pulled: bool) -> None:
    """ITA (no pull) and IEL (towards S): one Newton step on the whole quadratic, in float64."""
    theta0 = split_backbone()
    metric = of_features(theta0, kind).mean(1e-3, unit=True)
    total = {n: randn(*w.shape, seed=5) for n, w in theta0.trainable.items()} if pulled else None
    penalty = Quadratic(30.0, metric, 0.75, total, 4)
    key = {"lora": "B", "full": "tau", "ia3": "l"}[adapter.kind]
    with theta0.attach(adapter, seeded(1)) as attachment:
        shake(attachment, 2)
        before = {
            n: {k: v.detach().clone() for k, v in x.adapter_parameters.items()} for n, x in attachment.layers.items()
        }
        for s in (0.5, 0.25):
            penalty.step(attachment, s, "proximal")
            for name, layer in attachment.layers.items():
                old = before[name]

                def objective(x: Tensor, name: str = name, old: dict[str, Tensor] = old, s: float = s) -> Tensor:
                    tau = adapter.delta({**old, key: x}, theta0.trainable[name])
                    held = penalty.strength * penalty.share * (tau * metric.gradient(name, tau)).sum() / 2
                    if total is not None:
                        held = held - penalty.strength * (tau * metric.gradient(name, total[name])).sum() / 4
                    return (x - old[key]).square().sum() / 2 + s * held

                found = layer.adapter_parameters[key].detach()
                torch.testing.assert_close(found, newton(objective, old[key]), rtol=1e-7, atol=1e-9)
                before[name] = values(layer)


@each_kind
def test_an_adapter_without_an_exact_step_takes_the_bound(kind: CurvatureKind) -> None:
    """Its step never raises the objective, at any strength."""

    class Plain(LoRA):
        proximal_in = None  # pyright: ignore[reportAssignmentType]

    theta0 = split_backbone()
    metric = of_features(theta0, kind).mean(1e-3, unit=True)
    for strength in (1.0, 1e4):
        penalty = Quadratic(strength, metric)
        with theta0.attach(Plain(2), seeded(1)) as attachment:
            shake(attachment, 2)
            before = attachment.vector()
            penalty.step(attachment)
            assert float(penalty.value(attachment.vector())) < float(penalty.value(before))


@each_kind
def test_iels_penalty_is_the_gap_seen_from_the_current_vector(kind: CurvatureKind) -> None:
    """Gradient beta F ((1 - 1/T) tau - S/T), T = 3, by the metric's own products."""
    theta0 = split_backbone()
    metric = of_features(theta0, kind).mean(1e-3)
    first, second, tau = ({n: randn(*w.shape, seed=s) for n, w in theta0.trainable.items()} for s in (1, 2, 3))
    total = {n: first[n] + second[n] for n in first}
    penalty = IEL(2.0).bind(metric, total, 3)
    leaves = {n: t.clone().requires_grad_() for n, t in tau.items()}
    mean = {n: (total[n] + leaves[n]) / 3 for n in total}
    omega = metric.value(first) + metric.value(second) + metric.value(leaves) - 3 * metric.value(mean)
    expected = torch.autograd.grad(2.0 * omega, list(leaves.values()))  # beta T Omega at w = 1/T
    for n, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(penalty.gradient(n, tau[n]), gradient)


# Learning

PROXIMAL = replace(QUICK, step="proximal", normalize_fisher=True)


def learned(folder: Path, kind: CurvatureKind, of: CurvatureOf = "tasks", tasks: int = 3, **options: object) -> Pool:
    training = replace(PROXIMAL, curvature=kind, curvature_of=of, curvature_images=8)
    given = {"adapter": LoRA(2), "regularizer": ITA(1.0), "training": training, **options}
    return learn(backbone(), stream(tasks), out=folder, **given)  # pyright: ignore[reportArgumentType]


def penalty_of(pool: Pool, task: str, metric: Metric) -> float:
    return float(metric.value(pool.vector(task)))


@pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
@pytest.mark.parametrize("regularizer", [ITA, IEL])
@each_kind
def test_learning_under_it_keeps_the_penalty_small(
    kind: CurvatureKind, regularizer: type[ITA] | type[IEL], adapter: Adapter, tmp_path: Path
) -> None:
    found = {}
    for strength in (0.0, 30.0):
        pool = learned(tmp_path / f"{strength}", kind, adapter=adapter, regularizer=regularizer(strength))
        curvature = pool.fisher()
        assert curvature is not None
        assert curvature.kind == kind
        assert curvature.count == 24  # of 12 images per task, 8
        found[strength] = penalty_of(pool, "task02", curvature.mean(unit=True))
        assert pool.card("task02").settings["curvature"] == kind
    assert found[30.0] < 0.5 * found[0.0]


@each_kind
def test_what_a_pool_stores_of_it_comes_back(kind: CurvatureKind, tmp_path: Path) -> None:
    pool = learned(tmp_path, kind, keep_fishers=True)
    own = [pool.fisher(task) for task in pool.tasks]
    total: Curvature | None = None
    for one in own:
        assert one is not None
        total = one if total is None else total + one
    running = Pool.open(tmp_path, backbone()).fisher()
    assert running is not None
    assert total is not None
    assert same(running.tensors(), total.tensors())
    assert verify(pool) == []


@each_kind
@pytest.mark.parametrize("of", ["tasks", "reference"])
def test_five_tasks_and_two_more_are_seven(kind: CurvatureKind, of: CurvatureOf, tmp_path: Path) -> None:
    whole = learned(tmp_path / "whole", kind, of)
    training = replace(PROXIMAL, curvature=kind, curvature_of=of, curvature_images=8)
    learn(
        backbone(),
        stream(3).subset(["task01", "task02"]),
        out=tmp_path / "grown",
        adapter=LoRA(2),
        regularizer=ITA(1.0),
        training=training,
    )
    grown = learn(backbone(), stream(3).subset(["task03"]), out=tmp_path / "grown", add=True)
    assert all(same(whole.module(t).vector, grown.module(t).vector) for t in whole.tasks)


@each_kind
def test_a_reference_set_regularizes_all_modules_alike(kind: CurvatureKind, tmp_path: Path) -> None:
    """The first task too; what is stored is of its images alone, however many tasks there are."""
    pool = learned(tmp_path / "a", kind, "reference", keep_fishers=True)
    running, first = pool.fisher(), pool.fisher("task01")
    assert running is not None
    assert first is not None
    assert running.count == first.count == 8
    assert same(running.tensors(), first.tensors())
    assert pool.fisher("task02") is None
    assert [pool.card(t).influenced_by.fisher for t in pool.tasks] == [(), ("task01",), ("task01",)]
    free = learned(tmp_path / "b", kind, "reference", regularizer=ITA(0.0))
    metric = running.mean(unit=True)
    for task in pool.tasks:
        assert penalty_of(pool, task, metric) < 0.9 * penalty_of(free, task, metric)


@each_kind
def test_over_all_others_it_is_everything_but_the_task(kind: CurvatureKind, tmp_path: Path) -> None:
    """And a run that is stopped goes on with what the pool has, in the same bases."""
    training = replace(PROXIMAL, curvature=kind, curvature_images=8, fisher_over="others")
    whole = learned(tmp_path / "whole", kind, training=training)
    done = 0

    def stop(phase: str, now: int, total: int) -> None:
        nonlocal done
        done += phase.startswith("task02: training")
        if done > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path / "stopped", kind, training=training, progress=stop)
    assert Pool.open(tmp_path / "stopped", backbone()).tasks == ("task01",)
    resumed = learned(tmp_path / "stopped", kind, training=training, resume=True)
    assert all(same(whole.module(t).vector, resumed.module(t).vector) for t in whole.tasks)


def test_a_pool_takes_no_tasks_of_another_curvature(tmp_path: Path) -> None:
    learned(tmp_path, "kfac", tasks=2)
    more = stream(3).subset(["task03"])
    changes: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
        ({"curvature": "ekfac"}, ("--training.curvature kfac", "ekfac")),
        ({"curvature_of": "reference"}, ("--training.curvature-of tasks", "reference")),
    )
    for change, words in changes:
        with pytest.raises(InputError) as error:
            learn(backbone(), more, out=tmp_path, add=True, training=Training(**change))
        assert all(word in str(error.value) for word in words)
    assert Pool.open(tmp_path, backbone()).tasks == ("task01", "task02")


def test_ray_refuses_what_begins_in_the_first_task(tmp_path: Path) -> None:
    ray = pytest.importorskip("intarsia.engines.ray")
    begun: tuple[dict[str, Any], ...] = ({"curvature": "ekfac"}, {"curvature": "kfac", "curvature_of": "reference"})
    for given in begun:
        with pytest.raises(InputError) as error:
            ray.Ray().check(ITA(), Settings(**given))
        assert all(word in str(error.value) for word in ("engine ray", *given.values(), "leave the engine out"))


def test_fine_tuning_in_another_step_uses_it_too() -> None:
    """Decoupled and coupled take the gradient of the same penalty."""
    task, theta0 = stream(2)[0], backbone()
    found = {}
    for step in ("proximal", "decoupled", "coupled"):
        settings = replace(PROXIMAL, curvature="kfac", step=step)
        first, state = prepare(theta0, task, LearnerState(), settings)
        sizes = []
        for strength in (0.0, 0.05):
            configuration = Configuration(LoRA(2), ITA(strength), settings)
            tuned = fine_tune(theta0, first, state, state.fisher, configuration)
            assert state.fisher is not None
            sizes.append(float(state.fisher.mean(unit=True).value(tuned.vector)))
        found[step] = sizes[1] / sizes[0]
    assert max(found.values()) < 1, found


def test_diagnose_has_the_gap_under_every_curvature(tmp_path: Path) -> None:
    pool = learned(tmp_path, "kfac")
    found = diagnose(pool, stream(3), per_task=6)
    assert set(found.predicted_gaps) == {*CURVATURES, "layers", "whole"}
    assert all(gap > 0 for gap in found.predicted_gaps.values())


def test_the_whole_gap_is_that_of_the_linearized_logits() -> None:
    """By the definition: 1/2 sum_t w_t E |J (tau_t - mean)|^2 under diag p - p p', weights not alike."""
    theta0, heads, images, w = split_backbone(), head(3, 8), inputs(7), [0.5, 0.2, 0.3]
    taus = [TaskVector({n: randn(*v.shape, seed=s) / 9 for n, v in theta0.trainable.items()}) for s in range(3)]
    mean = 0.5 * taus[0] + 0.2 * taus[1] + 0.3 * taus[2]
    p = torch.softmax(heads(theta0.features(images)), 1)
    expected = 0.0
    for share, tau in zip(w, taus, strict=True):
        slopes = Tangent(theta0)(images, tau - mean)[1] @ heads.weight.T
        expected += share * float(((p * slopes.square()).sum(1) - (p * slopes).sum(1).square()).mean()) / 2
    found = predicted_gaps(theta0, heads, images.split(3), taus, w)
    assert found["whole"] == pytest.approx(expected, rel=1e-10)


def test_layer_by_layer_the_gap_is_that_of_task_vectors_on_one_weight_alone() -> None:
    """By the definition: the whole gap of vectors that are zero but on one weight, summed over the weights."""
    theta0, heads, images, w = backbone(0, torch.float64), head(3, 16), inputs(7), [0.5, 0.2, 0.3]
    taus = [TaskVector({n: randn(*v.shape, seed=s) / 9 for n, v in theta0.trainable.items()}) for s in range(3)]
    away = torch.eye(3, dtype=torch.float64) - torch.tensor(w, dtype=torch.float64)
    alone = [[only(theta0, name, tau[name]) for tau in taus] for name in theta0.trainable]
    squares = [whole_fisher_squares(theta0, heads, images.split(3), one, away) for one in alone]
    expected = sum(x * s / 2 for each in squares for x, s in zip(w, each, strict=True))
    found = layer_by_layer(theta0, heads, images.split(3), taus, w, estimator="exact")
    assert found == pytest.approx(expected, rel=1e-8)


def test_a_pool_without_a_diagonal_is_merged_at_a_scale_that_is_given(tmp_path: Path) -> None:
    from intarsia.pool import merged  # noqa: PLC0415

    pool = learned(tmp_path, "kfac", keep_fishers=True)
    for rule in ("fisher", "ties"):
        with pytest.raises(InputError, match="diagonal Fisher"):
            merged(pool, rule)
    assert merged(pool, "ties", scale=0.5).classes
