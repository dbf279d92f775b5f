"""The methods to compare with, each on a case whose answer is known."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

from cases import GREY, QUICK, backbone, inputs, randn, same, seeded, stream, tiny_vit
from intarsia import Backbone, Full, LoRA, TaskStream, TaskVector
from intarsia.baselines.derpp import DERpp, Reservoir
from intarsia.baselines.ewc import EWC, Consolidated
from intarsia.baselines.finetune import FineTuning
from intarsia.baselines.frozen import Frozen
from intarsia.baselines.joint import Joint
from intarsia.baselines.modules import Modules
from intarsia.baselines.peers.ewc_lora import EWCLoRA
from intarsia.baselines.peers.lca import LCA
from intarsia.baselines.peers.ranpac import RanPAC
from intarsia.baselines.peers.slca import SLCA
from intarsia.baselines.peers.tuna import TUNA
from intarsia.baselines.protocol import Baseline, TaskResult, classifier
from intarsia.baselines.seed import SEED, ClassGaussian, Ensemble, Expert, least_overlap
from intarsia.baselines.sequential import ModelInTraining
from intarsia.baselines.tmc import RIDGE, TMC, TangentClassifier, TangentHead, least_squares, targets
from intarsia.class_stats.gaussians import Gaussians
from intarsia.curvature.fisher import DiagonalMetric, diagonal_fisher
from intarsia.curvature.head_fisher import head_fisher
from intarsia.curvature.linearized import Tangent
from intarsia.errors import DivergenceError
from intarsia.evaluation.metrics import Scores
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.heads.trained_head import TrainableHead
from intarsia.merging.merge import moved
from intarsia.progress import silent
from intarsia.regularizers.l2 import L2
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import fresh_head

pytestmark = pytest.mark.slow

METHODS: dict[str, Callable[..., Baseline]] = {
    "frozen": Frozen,
    "joint": Joint,
    "finetune": FineTuning,
    "ewc": EWC,
    "derpp": DERpp,
    "l2": lambda strength=0.1, **options: Modules(L2(strength), **options),
    "tmc": TMC,
    "seed": SEED,
    "ranpac": partial(RanPAC, width=32),
    "slca++": SLCA,
    "tuna": TUNA,
    "lca": LCA,
    "ewc-lora": EWCLoRA,
}


def learned(
    name: str, tasks: int = 3, settings: Settings = QUICK, theta0: Backbone | None = None, **options: Any
) -> list[TaskResult]:
    return list(METHODS[name](**options).train(theta0 or backbone(), stream(tasks), settings))


@pytest.mark.parametrize("name", METHODS)
def test_a_network_in_float64_is_learned_on_like_one_in_float32(name: str) -> None:
    images = stream(3)[0].test.tensor(GREY)
    double, single = (learned(name, theta0=backbone(dtype=dtype))[-1].model for dtype in (torch.float64, torch.float32))
    expected = single.logits(images)
    torch.testing.assert_close(double.logits(images).to(expected), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_answers_with_all_classes_seen_and_leaves_theta0_as_it_was(name: str) -> None:
    theta0, tasks = backbone(), stream(3)
    stages, scores = learned(name, theta0=theta0), Scores(tasks)
    counts = [3] if name == "joint" else [1, 2, 3]
    assert [len(stage.model.classes) for stage in stages] == counts
    for stage, count in zip(stages, counts, strict=True):
        logits = stage.model.logits(tasks[0].test.tensor(GREY))
        assert logits.shape == (8, 2 * count)
        assert bool(logits.isfinite().all())
        scores.add(stage.model)
    assert scores.evaluation().images == 24
    assert same(theta0.model.state_dict(), backbone().model.state_dict())
    assert [stage.stored for stage in stages] == sorted(stage.stored for stage in stages)
    assert stages[-1].images == {"joint": 36, "derpp": 36}.get(name, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_task_may_have_one_class(name: str) -> None:
    *_, last = METHODS[name]().train(backbone(), stream(2, classes=1), QUICK)
    logits = last.model.logits(stream(1)[0].test.tensor(GREY))
    assert logits.shape[1] == 2
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_function_of_the_seed(name: str) -> None:
    images = stream(2)[0].test.tensor(GREY)
    first, again = (learned(name, 2)[-1].model.logits(images) for _ in range(2))
    assert torch.equal(first, again)


def test_fine_tuning_is_adamw_on_all_tuned_weights_and_a_head_that_grows() -> None:
    """A loop by hand over a plain network, two tasks."""
    tasks = stream(2)
    theta0 = backbone()
    network = tiny_vit()
    tuned = [network.get_parameter(f"{path}.weight") for path in theta0.targets.values()]
    head = None
    for number, task in enumerate(tasks, start=1):
        images, labels = task.train.tensor(GREY), task.train.labels + 2 * (number - 1)
        features = network(GREY.normalize(images)).detach()
        seeds_of = Seeds(QUICK.seed, number)
        fresh = fresh_head(features, task.train.labels, 2, QUICK, seeds_of.generator("heads"))
        head = TrainableHead(fresh if head is None else Head.join([head.trained(), fresh]))
        optimizer = torch.optim.AdamW([*tuned, *head.parameters()], lr=1.0, weight_decay=0.0)
        generator, steps = seeds_of.generator("training"), 0
        for epoch in range(2):
            order = torch.randperm(12, generator=generator).split(8)
            for k, index in enumerate(order, start=1):
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2 * (1.0 if epoch == 0 else 0.5) * min(1.0, epoch + k / 2)
                loss = F.cross_entropy(head(network(GREY.normalize(images[index]))), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
        assert steps == 4
    model = learned("finetune", 2)[-1].model
    x = tasks[1].test.tensor(GREY)
    assert head is not None
    expected = head(network(GREY.normalize(x))).detach()
    torch.testing.assert_close(model.logits(x), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def student() -> Iterator[ModelInTraining]:
    """Mid-way through a second task: weights and head moved."""
    theta0 = backbone()
    with theta0.attach(Full(), seeded(0)) as adapter:
        with torch.no_grad():
            for place, part in enumerate(adapter.parameters()):
                part.add_(randn(*part.shape, seed=place, dtype=torch.float32), alpha=0.05)
        head = TrainableHead(Head(randn(4, 16, seed=70).float(), randn(4, seed=71).float()))
        yield ModelInTraining(theta0, theta0.model, adapter, head, QUICK, "none", seeded(1))


def test_ewc_is_the_quadratic_about_where_the_last_task_ended(student: ModelInTraining) -> None:
    theta0 = backbone()
    task, vector = stream(2)[0], TaskVector({n: torch.full_like(w, 0.01) for n, w in theta0.trainable.items()})
    ended = Head(randn(2, 16, seed=5).float(), randn(2, seed=6).float())
    network = moved(theta0, lambda name, _: vector[name])
    model = classifier(theta0, network, ended, {task.name: task.classes})
    strategy = Consolidated(3.0, "fp32")
    assert strategy.loss(student) is None
    strategy.learned(task, theta0, model, seeded(7), silent)
    there = Backbone(network, name="there", preprocessing=GREY)
    x = GREY.normalize(task.train.tensor(GREY))
    fisher = diagonal_fisher(there, ended, [x], generator=seeded(7)).mean(0.0)
    by_weight, by_bias = head_fisher(there.features(x), ended.weight, ended.bias)
    unit = torch.cat([f.flatten() for f in fisher.values()]).mean()
    total = sum((fisher[n] * (layer.delta() - vector[n]).square()).sum() for n, layer in student.adapter.layers.items())
    total = total + (by_weight * (student.head.weight[:2] - ended.weight).square()).sum()
    total = total + (by_bias * (student.head.bias[:2] - ended.bias).square()).sum()
    got = strategy.loss(student)
    assert got is not None
    torch.testing.assert_close(got, 1.5 * total / unit, rtol=1e-4, atol=1e-6)
    strategy.learned(task, theta0, model, seeded(7), silent)  # the same task again: it holds twice as much
    again = strategy.loss(student)
    assert again is not None
    torch.testing.assert_close(again, 2 * got)


def test_ewc_without_strength_is_fine_tuning_and_with_much_of_it_stays() -> None:
    images = stream(3)[0].test.tensor(GREY)
    plain, free, held = learned("finetune"), learned("ewc", strength=0.0), learned("ewc", strength=1e6)
    torch.testing.assert_close(free[-1].model.logits(images), plain[-1].model.logits(images))

    def moved_on(stages: list[TaskResult]) -> float:
        first, last = (stage.model.logits(images)[:, :2] for stage in (stages[0], stages[-1]))
        return float((last - first).norm())

    assert moved_on(held) < 0.5 * moved_on(plain)


def test_every_image_seen_is_in_the_reservoir_with_the_same_probability() -> None:
    """2,000 reservoirs of 5 out of 20, filled by batches of 4: each image 500 times, within 4.5 standard deviations."""
    kept: Counter[int] = Counter()
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None]
    for trial in range(2000):
        reservoir = Reservoir(5, 0.5, 0.5, seeded(trial))
        for some in images.split(4):
            reservoir.see(some, torch.zeros(len(some), dtype=torch.long), torch.zeros(len(some), 2))
        assert reservoir.images == 5
        kept.update(int(image) for image, _, _ in reservoir.kept)
    deviation = (2000 * 0.25 * 0.75) ** 0.5
    assert max(abs(kept[i] - 500) for i in range(20)) < 4.5 * deviation


def test_derpp_compares_logits_of_the_classes_known_then_and_repeats_the_labels(student: ModelInTraining) -> None:
    """A buffer smaller than a batch is drawn whole, in some order: both terms are means over it."""
    images, labels = stream(2)[0].train.tensor(GREY)[:6], torch.tensor([0, 1, 0, 1, 0, 1])
    then = randn(6, 3, seed=3).float()
    strategy = Reservoir(10, 0.7, 0.2, seeded(3))
    assert strategy.loss(student) is None
    strategy.see(images[:4], labels[:4], then[:4, :2])
    strategy.see(images[4:], labels[4:], then[4:])
    with torch.no_grad():
        now = student.logits(images)
    squares = torch.cat([(now[:4, :2] - then[:4, :2]).square().flatten(), (now[4:, :3] - then[4:]).square().flatten()])
    expected = 0.7 * squares.mean() + 0.2 * F.cross_entropy(now, labels)
    got = strategy.loss(student)
    assert got is not None
    torch.testing.assert_close(got.detach(), expected)
    assert strategy.stored() == 6 * (64 + 1) + 4 * 2 + 2 * 3
    without = learned("derpp", 2, a=0.0, b=0.0)[-1].model
    x = stream(2)[0].test.tensor(GREY)
    torch.testing.assert_close(without.logits(x), learned("finetune", 2)[-1].model.logits(x))


def test_tangent_is_the_network_to_first_order() -> None:
    """|f(theta0 + e u) - phi - e J u| falls as e^2."""
    theta0 = backbone(dtype=torch.float64)
    x, tangent = inputs(5), Tangent(theta0)
    u = {n: 0.1 * randn(*w.shape, seed=i) for i, (n, w) in enumerate(theta0.trainable.items())}
    errors: list[float] = []
    for e in (1e-2, 5e-3):
        features, derivative = tangent(x, {n: e * v for n, v in u.items()})
        torch.testing.assert_close(features, theta0.features(x))
        there = moved(theta0, lambda name, _, e=e: e * u[name])
        errors.append(float((there(x) - features - derivative).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_mean_of_tangent_models_answers_with_the_mean_of_their_answers() -> None:
    """And so do its compositions: of one task, of all but one, of the mean minus one."""
    theta0 = backbone()
    vectors = {
        task: TaskVector({n: randn(*w.shape, seed=s + i).float() for i, (n, w) in enumerate(theta0.trainable.items())})
        for task, s in (("a", 0), ("b", 50), ("c", 99))
    }
    heads = {
        t: TangentHead(*(randn(*shape, seed=9 * s + i).float() for i, shape in enumerate(((2, 16), (2,)) * 2)))
        for s, t in enumerate("abc")
    }
    images, classes = stream(1)[0].test.tensor(GREY), {t: (f"{t}0", f"{t}1") for t in "abc"}
    mean = TangentClassifier(Tangent(theta0), vectors, heads, classes, GREY)
    a, b, c = (mean.specialize(task).logits(images) for task in "abc")
    thirds = dict.fromkeys("abc", 1 / 3)
    b_only, still = (replace(mean, weights={"b": w}, parts=thirds).logits(images) for w in (1.0, 0.0))

    def close(model: TangentClassifier, expected: Tensor) -> None:
        torch.testing.assert_close(model.logits(images), expected, rtol=1e-3, atol=1e-3)

    close(mean, (a + b + c) / 3)
    close(mean.negate("b", 0.5), (a + b + c) / 3 - (b_only - still) / 2)
    dropped = mean.unlearn("b")
    assert list(dropped.classes) == ["a", "c"]
    close(dropped, ((a + c) / 2)[:, [0, 1, 4, 5]])


def test_tangent_models_train_their_vectors_and_a_least_squares_head() -> None:
    """The head: no other has less square loss plus ridge. The vectors: longer with a larger learning rate."""
    features, labels = randn(9, 4, seed=1), torch.tensor([0, 1, 2] * 3)

    def cost(weight: Tensor, bias: Tensor) -> Tensor:
        return (features @ weight.T + bias - targets(labels, 3)).square().sum() + RIDGE * weight.square().sum()

    head = least_squares(features, labels)
    least = cost(head.weight.double(), head.bias.double())
    for seed in range(20):
        weight, bias = head.weight + 0.01 * randn(3, 4, seed=seed), head.bias + 0.01 * randn(3, seed=seed + 50)
        assert float(cost(weight, bias)) > float(least)
    assert torch.equal(targets(torch.tensor([1]), 3), torch.tensor([[0.0, 15.0, 0.0]]))
    lengths: list[float] = []
    for lr in (1e-4, 1e-2):
        model = learned("tmc", 2, settings=replace(QUICK, lr=lr))[-1].model
        assert isinstance(model, TangentClassifier)
        lengths += [float(vector.norm()) for vector in model.vectors.values()]
    assert 0 < max(lengths[:2]) < 0.1 * min(lengths[2:])


def test_tangent_models_are_edited_after_the_last_task() -> None:
    first, last = learned("tmc", 2)
    assert first.modules is None
    assert last.modules is not None
    assert isinstance(last.model, TangentClassifier)
    x = stream(2)[0].test.tensor(GREY)
    made = {how: model().logits(x) for how, model in last.modules.edits("task01").items()}
    assert last.modules.mean is last.model
    torch.testing.assert_close(made["only it, all classes"], last.model.specialize("task01").logits(x))
    torch.testing.assert_close(made["negate 0.5"], last.model.negate("task01", 0.5).logits(x))
    torch.testing.assert_close(made["drop"], last.model.unlearn("task01").logits(x))


def test_l2_is_half_the_squared_norm_whatever_the_fisher() -> None:
    vector = TaskVector({"a": randn(3, 4, seed=1)})
    penalty = L2(0.6).bind(DiagonalMetric({"a": randn(3, 4, seed=2).square()}), None, 3)
    torch.testing.assert_close(penalty.value(vector), 0.3 * vector["a"].square().sum())
    norms = [sum(float(s.norm()) for s in _vectors(strength)) for strength in (0.0, 100.0)]
    assert norms[1] < 0.5 * norms[0]


def _vectors(strength: float) -> list[Tensor]:
    """How far the mean of L2's modules is from theta0, weight by weight."""
    theta0 = backbone()
    model = learned("l2", 2, strength=strength, adapter=LoRA(2))[-1].model
    there = Backbone(model.network, name="there", preprocessing=GREY)  # pyright: ignore[reportAttributeAccessIssue]
    return [there.trainable[name] - w for name, w in theta0.trainable.items()]


def gaussian(width: int, seed: int, away: float = 0.0) -> ClassGaussian:
    basis = torch.tril(randn(width, width, seed=seed)) * 0.3
    basis.diagonal().abs_().add_(0.5)
    return ClassGaussian(away + randn(width, seed=seed + 1), basis)


def test_seeds_gaussians_have_scipys_density_and_torchs_divergence() -> None:
    a, b, x = gaussian(4, 1), gaussian(4, 10), randn(7, 4, seed=3)
    density = multivariate_normal.logpdf(x, a.mean.numpy(), (a.basis @ a.basis.T).numpy())  # pyright: ignore
    torch.testing.assert_close(a.log_density(x), torch.from_numpy(density))
    p, q = (MultivariateNormal(g.mean, scale_tril=g.basis) for g in (a, b))
    assert a.divergence(b) == pytest.approx(float(kl_divergence(p, q)))
    assert a.divergence(a) == pytest.approx(0, abs=1e-12)
    fitted = ClassGaussian.of(x @ a.basis.T)
    torch.testing.assert_close(fitted.mean, (x @ a.basis.T).mean(0))


def test_seed_picks_the_expert_in_which_the_classes_overlap_least() -> None:
    near = [gaussian(3, 1), gaussian(3, 2)]
    far = [gaussian(3, 1), gaussian(3, 2, away=10.0)]
    assert least_overlap([near, far, near]) == 1
    assert least_overlap([far, near]) == 0
    assert least_overlap([[gaussian(3, 1)], [gaussian(3, 2)]]) == 0  # a single class overlaps with none


def test_seeds_experts_answer_with_the_mean_over_those_that_know_a_class() -> None:
    images = stream(1)[0].test.tensor(GREY)
    experts = [Expert({}, backbone(s).model, straight(16)) for s in (0, 1)]
    features = [e.features(images, GREY) for e in experts]
    known = {"a": gaussian(16, 1), "b": gaussian(16, 2), "c": gaussian(16, 3)}
    experts[0].known.update(known)
    experts[1].known.update({"c": known["c"]})
    got = Ensemble(tuple(experts), {"one": ("a", "b"), "two": ("c",)}, GREY, 2.0).logits(images).exp()
    first = torch.stack([known[n].log_density(features[0]) for n in "abc"], 1).div(2.0).softmax(1)
    first[:, 2] = (first[:, 2] + 1) / 2  # the second expert knows nothing else
    torch.testing.assert_close(got, first)


def straight(width: int) -> nn.Linear:
    """The identity."""
    layer = nn.Linear(width, width)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
        layer.bias.zero_()
    return layer


def test_seed_trains_one_expert_a_task_the_one_in_which_its_classes_overlap_least() -> None:
    """The first tasks train an expert each; which one a later task trains is worked out from those of before."""
    chosen: set[int] = set()
    for seed in range(3):
        stages = learned("seed", 4, experts=2, settings=replace(QUICK, seed=seed))
        ensembles = [stage.model for stage in stages]
        experts = [model.experts for model in ensembles]  # pyright: ignore[reportAttributeAccessIssue]
        assert [len(those) for those in experts] == [1, 2, 2, 2]
        for task, before, after in zip(list(stream(4))[2:], experts[1:3], experts[2:], strict=True):
            images, labels = task.train.tensor(GREY), task.train.labels
            features = [e.features(images, GREY) for e in before]
            place = least_overlap([[ClassGaussian.of(f[labels == c]) for c in (0, 1)] for f in features])
            unchanged = [same(a.state, b.state) for a, b in zip(before, after, strict=True)]
            assert unchanged == [place != 0, place != 1]
            chosen.add(place)
        sizes = [len(expert.known) for expert in experts[-1]]
        assert sizes == [8, 6]  # the second was not there when the first task was learned
    assert chosen == {0, 1}


def test_a_seed_expert_starts_as_principal_axes_and_distillation_holds_it_to_what_it_was() -> None:
    """Trained again, its features hardly move if all of the loss is distillation, nor do Gaussians it knew."""
    images, settings = stream(1)[0].train.tensor(GREY), replace(QUICK, lr=0.0)
    one = learned("seed", 1, settings, width=3)[-1].model
    assert isinstance(one, Ensemble)
    features = backbone().features(GREY.normalize(images)).numpy()
    axes = PCA(3, svd_solver="full").fit_transform(features)
    got = one.experts[0].features(images, GREY)
    torch.testing.assert_close(got.abs(), torch.from_numpy(axes).abs(), rtol=1e-3, atol=1e-4)
    most = learned("seed", 1, settings, width=16)[-1].model
    assert isinstance(most, Ensemble)
    assert most.experts[0].features(images, GREY).shape == (12, 11)  # twelve images vary along eleven axes

    def moved_by(distillation: float) -> float:
        stages = learned("seed", 2, experts=1, distillation=distillation)
        first, last = (stage.model.experts[0] for stage in stages)  # pyright: ignore[reportAttributeAccessIssue]
        assert all(same(vars(g), vars(last.known[name])) for name, g in first.known.items())
        return float((first.features(images, GREY) - last.features(images, GREY)).norm())

    assert moved_by(1.0) < 0.2 * moved_by(0.0)


def test_joint_training_sees_every_image_under_its_class() -> None:
    tasks = stream(3)
    whole = tasks.joined()
    assert whole.classes == tasks.classes
    assert len(whole) == 1
    for side in ("train", "test"):
        joined, parts = getattr(whole[0], side), [getattr(t, side) for t in tasks]
        assert torch.equal(joined.tensor(GREY), torch.cat([p.tensor(GREY) for p in parts]))
        assert torch.equal(joined.labels, torch.cat([p.labels + 2 * i for i, p in enumerate(parts)]))
    assert whole.source()["changes"] == [{"joined": "all"}]


def test_joint_training_is_free_of_every_regularizer() -> None:
    """Whatever the settings hold head and features with, the upper bound of every table does not feel it."""
    x = stream(3)[0].test.tensor(GREY)
    held = replace(QUICK, lambda_h=10.0, lambda_0=10.0, center_features=True, drift_penalty=1e3)
    free = replace(QUICK, lambda_h=0.0, lambda_0=0.0, center_features=False, drift_penalty=0.0)
    first, second = (learned("joint", 3, settings)[-1].model.logits(x) for settings in (held, free))
    assert torch.equal(first, second)


def test_frozen_is_the_discriminant_of_all_features_at_theta0() -> None:
    theta0, tasks = backbone(), stream(2)
    features = torch.cat([theta0.features(GREY.normalize(t.train.tensor(GREY))) for t in tasks])
    labels = torch.cat([t.train.labels + 2 * i for i, t in enumerate(tasks)])
    expected = discriminant(Gaussians.of(features, labels, 4))
    x = tasks[0].test.tensor(GREY)
    torch.testing.assert_close(
        learned("frozen", 2)[-1].model.logits(x), expected(theta0.features(GREY.normalize(x))), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_classes_of_one_image(name: str) -> None:
    tasks = stream(3, train=1)
    *_, last = METHODS[name]().train(backbone(), tasks, QUICK)
    assert bool(last.model.logits(tasks[0].test.tensor(GREY)).isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_tasks_of_one_class(name: str) -> None:
    images, labels = stream(1, classes=5)[0].train.tensor(GREY), stream(1, classes=5)[0].train.labels
    split = {"a": ["class0", "class1", "class2"], "b": ["class3"], "c": ["class4"]}
    tasks = TaskStream.from_arrays((images, labels), (images, labels), [f"class{i}" for i in range(5)], split=split)
    *_, last = METHODS[name]().train(backbone(), tasks, QUICK)
    logits = last.model.logits(tasks[0].test.tensor(GREY))
    assert logits.shape[1] == 5
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_balanced_classes(name: str) -> None:
    even = stream(2, train=8)
    few = [replace(t, train=t.train.select(torch.tensor([0, 1, *range(8, 16)]))) for t in even]
    tasks = TaskStream("uneven", tuple(few))
    x, found = tasks[0].test.tensor(GREY), list[Tensor]()
    for balanced in (False, True):
        *_, last = METHODS[name]().train(backbone(), tasks, replace(QUICK, class_balanced=balanced))
        found.append(last.model.logits(x))
    assert bool(found[1].isfinite().all())
    assert not torch.equal(found[0], found[1])


def test_a_loss_that_is_not_finite_stops_by_name() -> None:
    with pytest.raises(DivergenceError, match="task 'task01'"):
        learned("finetune", 2, settings=replace(QUICK, lr=1e30))
