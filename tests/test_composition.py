"""Composed models: the algebra of merging, bit for bit where it must be."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import ADAPTERS, GREY, KINDS, QUICK, backbone, contents, inputs, module, same, seeded, shake, stream
from intarsia import Backbone, ComposedModel, InputError, LoRA, Pool, TaskVector, learn
from intarsia.adapters import Adapter
from intarsia.class_stats.drift import FeatureDrift
from intarsia.class_stats.gaussians import Gaussians
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.merging.heads import compose_heads, prototype_tasks
from intarsia.merging.merge import merge
from intarsia.merging.recipe import Recipe, mean, specialize, unlearn, weighted
from intarsia.store.module import Module

DOUBLE = torch.float64
NAMES = ("birds", "cars", "dogs", "eels")
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)


def modules(adapter: Adapter, theta0: Backbone, tasks: tuple[str, ...] = NAMES) -> list[Module]:
    return [module(t, [f"{t}{c}" for c in "ab"], adapter, theta0, seed=i + 1) for i, t in enumerate(tasks)]


def tau(learned: Module, adapter: Adapter, theta0: Backbone) -> TaskVector:
    return TaskVector({n: learned.delta(n, adapter, w) for n, w in theta0.trainable.items()})


def trainable(network: nn.Module, theta0: Backbone) -> dict[str, Tensor]:
    return {n: network.get_submodule(path).get_parameter("weight") for n, path in theta0.targets.items()}


# Merging


@each_adapter
def test_merged_module_is_the_adapted_network(adapter: Adapter) -> None:
    theta0, x = backbone(dtype=DOUBLE), inputs(3)
    (learned,) = modules(adapter, theta0, NAMES[:1])
    with theta0.attach(adapter) as attachment:
        attachment.load(learned.vector)
        adapted = theta0.features(x)
    merged = merge(theta0, adapter, [learned], {"birds": 1.0})(x)
    torch.testing.assert_close(merged, adapted, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(merged, theta0.features(x), rtol=1e-3)


@each_adapter
@pytest.mark.parametrize("dead_row", [False, True])
def test_network_trained_by_iel_is_the_mean_of_its_modules(adapter: Adapter, dead_row: bool) -> None:
    """theta0 + (S + tau) / T through `compose` = the merged network of all T modules at w = 1/T."""
    theta0, x = backbone(dtype=DOUBLE), inputs(3)
    if dead_row:
        theta0.trainable["blocks.1.mlp.fc1.weight"][3] = 0
    known = modules(adapter, theta0)
    vectors = [tau(m, adapter, theta0) for m in known]
    with theta0.attach(adapter) as attachment:
        attachment.compose(vectors[0] + vectors[1] + vectors[2], 4)
        attachment.load(known[3].vector)
        adapted = theta0.features(x)
    merged = merge(theta0, adapter, known, mean(NAMES).weights)
    torch.testing.assert_close(adapted, merged(x), rtol=1e-10, atol=1e-12)
    for name, w in trainable(merged, theta0).items():
        dense = theta0.trainable[name] + sum(v[name] for v in vectors) / 4
        torch.testing.assert_close(w.detach(), dense)


@each_adapter
def test_one_hot_weights_give_back_the_module_bit_for_bit(adapter: Adapter) -> None:
    theta0 = backbone()
    known = modules(adapter, theta0)
    for learned in known:
        vector = tau(learned, adapter, theta0)
        one_hot = {t: float(t == learned.card.task) for t in NAMES}
        network = merge(theta0, adapter, known, one_hot)
        assert same(trainable(network, theta0), {n: w + vector[n] for n, w in theta0.trainable.items()})
        alone = merge(theta0, adapter, [learned], {learned.card.task: 1.0})
        assert same(alone.state_dict(), network.state_dict())


def test_no_weights_give_back_theta0_bit_for_bit() -> None:
    theta0 = backbone()
    assert same(merge(theta0, LoRA(2), modules(LoRA(2), theta0), {}).state_dict(), theta0.model.state_dict())


@each_adapter
def test_specialize_to_all_is_the_mean_bit_for_bit(adapter: Adapter) -> None:
    theta0 = backbone()
    known = modules(adapter, theta0)
    every, uniform = specialize(NAMES, NAMES[::-1]), mean(NAMES)
    assert (every.weights, every.tasks) == (uniform.weights, uniform.tasks)
    networks = [merge(theta0, adapter, known, r.weights) for r in (every, uniform)]
    assert same(networks[0].state_dict(), networks[1].state_dict())


@settings(max_examples=25)
@given(order=st.permutations(NAMES), parts=st.lists(st.integers(1, 50), min_size=4, max_size=4))
def test_composing_in_any_order_is_the_same_bit_for_bit(order: list[str], parts: list[int]) -> None:
    theta0, adapter = backbone(), LoRA(2)
    known = modules(adapter, theta0)
    w: dict[str, float] = {t: n / sum(parts) for t, n in zip(NAMES, parts, strict=True)}
    straight, permuted = weighted(NAMES, w), weighted(NAMES, {t: w[t] for t in order})
    assert straight.tasks == permuted.tasks == NAMES
    networks = [merge(theta0, adapter, known, r.weights) for r in (straight, permuted)]
    assert same(networks[0].state_dict(), networks[1].state_dict())


def test_specialized_tasks_in_any_order_are_the_same_model() -> None:
    assert specialize(NAMES, ["dogs", "birds"]) == specialize(NAMES, ["birds", "dogs"])


@each_adapter
def test_a_composed_network_costs_what_theta0_costs_and_theta0_stays(adapter: Adapter) -> None:
    """Same layers, same shapes, no adapter left, nothing shared; theta0 is not written."""
    theta0 = backbone()
    before = copy.deepcopy(theta0.model.state_dict())
    network = merge(theta0, adapter, modules(adapter, theta0), mean(NAMES).weights)
    assert [type(m) for m in network.modules()] == [type(m) for m in theta0.model.modules()]
    assert {n: p.shape for n, p in network.state_dict().items()} == {n: p.shape for n, p in before.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert same(before, theta0.model.state_dict())
    assert Backbone(theta0.model, name="again", preprocessing=theta0.preprocessing).hash == theta0.hash


def test_mean_of_the_products_is_not_pefts_mean_of_the_factors() -> None:
    theta0, adapter = backbone(dtype=DOUBLE), LoRA(2)
    known = modules(adapter, theta0)
    merged = trainable(merge(theta0, adapter, known, mean(NAMES).weights), theta0)
    for name, w in theta0.trainable.items():
        a, b = (torch.stack([m.vector[f"{name}.{part}"] for m in known]) for part in "AB")
        torch.testing.assert_close(merged[name].detach(), w + (b @ a).mean(0))
        assert not torch.allclose(merged[name], w + b.mean(0) @ a.mean(0), rtol=0.1)


# Recipes


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no weights"),
        ({"birds": float("nan"), "cars": 1.0}, "coefficient nan of task 'birds'"),
        ({"birds": float("inf")}, "coefficient inf"),
        ({"bird": 1.0}, "unknown task 'bird': the pool has birds, cars, dogs, eels"),
    ],
)
def test_bad_weights_are_refused_by_name(weights: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        weighted(NAMES, weights)


def test_scaled_is_every_coefficient_times_the_scale() -> None:
    recipe = weighted(NAMES, {"dogs": 1.5, "birds": -0.5})
    assert recipe.scaled(2.0).weights == {"dogs": 3.0, "birds": -1.0}
    assert recipe.scaled(2.0).name == "weighted dogs=1.5, birds=-0.5, scale 2"
    assert recipe.scaled(1.0) is recipe
    with pytest.raises(InputError, match="scale nan"):
        recipe.scaled(float("nan"))
    with pytest.raises(InputError, match="not finite in float32"):
        recipe.scaled(3e38)


def test_weighted_answers_with_the_tasks_it_names() -> None:
    recipe = weighted(NAMES, {"dogs": 0.75, "birds": 0.25, "cars": 0.0})
    assert recipe.tasks == ("birds", "cars", "dogs")


def test_specialize() -> None:
    recipe = specialize(NAMES, ["eels", "cars"])
    assert recipe.weights == {"cars": 0.5, "eels": 0.5}
    assert recipe.tasks == ("cars", "eels")
    assert specialize(NAMES, ["eels"], all_classes=True).tasks == NAMES
    assert specialize(NAMES, ["eels"], all_classes=True).weights == {"eels": 1.0}
    for wrong in ([], ["cars", "cars"], ["boats"]):
        with pytest.raises(InputError):
            specialize(NAMES, wrong)


def test_unlearn_by_dropping_is_the_mean_of_the_others() -> None:
    recipe = unlearn(NAMES, "cars")
    assert recipe.weights == {t: 1 / 3 for t in NAMES if t != "cars"}
    assert recipe.tasks == ("birds", "dogs", "eels")


@pytest.mark.parametrize(("scale", "left"), [(None, 0.0), (0.25, 0.0), (1.0, -0.75), (0.0, 0.25)])
def test_unlearn_by_negation_subtracts_and_keeps_all_heads(scale: float | None, left: float) -> None:
    """theta_P - lambda tau_t; by default just the task's share of the mean goes."""
    recipe = unlearn(NAMES, "cars", mode="negate", scale=scale)
    assert recipe.tasks == NAMES
    assert recipe.weights == {t: left if t == "cars" else 0.25 for t in NAMES}


def test_bad_unlearning_is_refused() -> None:
    for task, mode, scale in (("boats", "drop", None), ("cars", "erase", None), ("cars", "drop", 0.5)):
        with pytest.raises(InputError):
            unlearn(NAMES, task, mode=mode, scale=scale)
    with pytest.raises(InputError, match="only task"):
        unlearn(["cars"], "cars")
    with pytest.raises(InputError, match="scale nan"):
        unlearn(NAMES, "cars", mode="negate", scale=float("nan"))


@given(st.floats(1.0, 6.0), st.integers(1, 4))
def test_a_scaled_mean_counts_no_task_more_than_once(scale: float, count: int) -> None:
    tasks, sums = NAMES[:count], min(scale, float(count))
    whole = mean(tasks, scale)
    assert [*whole.weights.values()] == pytest.approx([sums / count] * count)
    assert whole.name == ("mean" if sums == 1 else f"mean, scale {sums:g}")
    fewer = {t: 1 / count for t in tasks} if count < len(NAMES) - 1 else whole.weights
    assert specialize(NAMES, tasks, mean_scale=scale).weights == fewer
    assert whole.first(tasks[:1]).weights == pytest.approx({tasks[0]: min(scale, 1.0)})
    negated = unlearn(tasks, tasks[0], mode="negate", mean_scale=scale).weights
    assert negated == {**whole.weights, tasks[0]: 0.0}
    if count > 1:
        assert unlearn(tasks, tasks[0], mean_scale=scale).weights == mean(tasks[1:], scale).weights


def test_history_of_a_recipe_is_the_same_rule_over_the_first_tasks() -> None:
    assert mean(NAMES).first(NAMES[:2]).weights == {"birds": 0.5, "cars": 0.5}
    recipe = weighted(NAMES, {"birds": 0.5, "cars": 0.25, "dogs": 0.25})
    first = recipe.first(("birds", "cars"))
    assert first.tasks == ("birds", "cars")
    assert first.weights == pytest.approx({"birds": 2 / 3, "cars": 1 / 3})
    assert Recipe({"eels": 1.0}, NAMES, "only eels").first(("birds",)).weights == {}


@pytest.mark.parametrize("tasks", [2, 3, 10, 49, 98, 100])
def test_the_first_of_many_tasks_answered_alone_with_its_own_head(tasks: int) -> None:
    """Ten tenths, or 49 forty-ninths, are not 1 in the last bit; newer Pythons' sum says other than older ones'."""
    names = tuple(f"task{i:03}" for i in range(tasks))
    only = module(names[0], ["a", "b"], LoRA(2), backbone(), 0)
    first = mean(names).first(names[:1])
    head = compose_heads([only], first, "prototypes")
    assert torch.equal(head.weight, only.own_head().weight)
    assert torch.equal(head.bias, only.own_head().bias)


def test_half_of_four_tasks_is_too_far_from_the_mean_and_half_of_more_is_not_however_rounded() -> None:
    for tasks in range(4, 60, 2):
        names = tuple(f"task{i:03}" for i in range(tasks))
        for half in (names[::2], names[1::2], names[: tasks // 2]):
            found = prototype_tasks(specialize(names, half), names, "prototypes")
            assert found == (names if tasks > 4 else ())


@pytest.mark.parametrize("tasks", [20, 100])
def test_a_fifth_of_many_tasks_is_looked_up_at_theta0_and_a_third_in_the_mean(tasks: int) -> None:
    """Few of many are hardly nearer to the mean than to theta0, and what lies between is known less well."""
    names = tuple(f"task{i:03}" for i in range(tasks))
    for part, expected in ((tasks // 5, ()), (tasks // 3, names)):
        assert prototype_tasks(specialize(names, names[:part]), names, "prototypes") == expected


@pytest.mark.parametrize(
    ("w", "near"),
    [
        ((0.3, 0.3, 0.4), True),
        ((0.6, 0.2, 0.2), True),
        ((0.8, 0.1, 0.1), False),
        ((1, 0, 0), False),
        ((0, 0, 0.1), False),
    ],
)
def test_in_small_pools_coefficients_far_from_the_mean_are_looked_up_at_theta0(
    w: tuple[float, ...], near: bool
) -> None:
    """One of three modules alone is nearer to the mean than to theta0, and lost 20 points of accuracy by it."""
    names = NAMES[:3]
    recipe = weighted(names, dict(zip(names, w, strict=True)))
    assert prototype_tasks(recipe, names, "prototypes") == (names if near else ())


# Models of a pool


def test_models_of_a_pool_are_its_recipes(pool: Pool) -> None:
    tasks, theta0 = pool.tasks, pool.backbone
    known = [pool.module(t) for t in tasks]
    cases = [
        (pool.mean(), mean(tasks)),
        (pool.weighted({tasks[2]: 0.3, tasks[0]: 0.7}), weighted(tasks, {tasks[0]: 0.7, tasks[2]: 0.3})),
        (pool.specialize([tasks[1]]), specialize(tasks, [tasks[1]])),
        (pool.specialize([tasks[1]], all_classes=True), specialize(tasks, [tasks[1]], all_classes=True)),
        (pool.unlearn(tasks[0]), unlearn(tasks, tasks[0])),
        (pool.unlearn(tasks[0], mode="negate", scale=0.5), unlearn(tasks, tasks[0], mode="negate", scale=0.5)),
    ]
    for model, recipe in cases:
        network = merge(theta0, pool.adapter, known, recipe.weights)
        assert same(model.network.state_dict(), network.state_dict())
        chosen = [m for m in known if m.card.task in recipe.tasks]
        own = pool.compose(recipe, heads="own")
        assert torch.equal(own.head.weight, torch.cat([m.head.weight for m in chosen]))
        assert torch.equal(own.head.bias, torch.cat([m.head.bias - m.head.weight @ m.shift for m in chosen]))
        assert same(own.network.state_dict(), network.state_dict())
        assert model.labels == tuple(c for t in recipe.tasks for c in pool.classes[t])
        assert model.recipe["weights"] == recipe.weights


def heads_on(pool: Pool, recipe: Recipe, seen: Mapping[str, Gaussians]) -> Head:
    """The discriminant of classes, and on it what fine-tuning changed, for features as far away as the classes."""
    chosen = [pool.module(t) for t in recipe.tasks]
    rows = discriminant(Gaussians.join([seen[t] for t in recipe.tasks]))
    weights, biases = [], []
    for i, m in enumerate(chosen):
        two = slice(2 * i, 2 * i + 2)
        moved = (seen[m.card.task].centres - m.statistics.gaussians().centres).mean(0).float()
        tuned = m.head.weight - m.reference.weight
        weights.append(rows.weight[two] + tuned)
        biases.append(rows.bias[two] + m.head.bias - m.reference.bias - tuned @ moved)
    return Head(torch.cat(weights), torch.cat(biases))


def shifted(classes: Gaussians, drifts: Sequence[tuple[FeatureDrift, float]], start: Tensor) -> Gaussians:
    """Classes moved by a combination of drifts of the points ``start``, written out."""
    matrix, offset = sum(w * d.matrix.double() for d, w in drifts), sum(w * d.offset.double() for d, w in drifts)
    assert isinstance(matrix, Tensor) and isinstance(offset, Tensor)
    onward = torch.eye(len(offset), dtype=DOUBLE) + matrix
    return Gaussians(classes.centres + start @ matrix + offset, onward.T @ classes.scatter @ onward, classes.freedom)


def assert_heads(model: ComposedModel, expected: Head) -> None:
    torch.testing.assert_close(model.head.weight, expected.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.head.bias, expected.bias, rtol=1e-3, atol=1e-3)


def mean_classes(pool: Pool, count: int, *, scaled: bool = False) -> dict[str, Gaussians]:
    """Where the classes of the first so many tasks lie in their mean: its own prototypes, then every later step.

    A step is the average of what its own task and the next one saw of it.
    """
    found: dict[str, Gaussians] = {}
    known = [pool.module(task).prototypes for task in pool.tasks[:count]]
    known = [(one.scaled if scaled else None) or one for one in known]
    for i, task in enumerate(pool.tasks[:count]):
        classes = known[i].classes
        for later, after in zip_longest(known[i + 1 :], known[i + 2 :]):
            again = after.again if after else None
            seen = [(later.step, 0.5), (again, 0.5)] if again else [(later.step, 1.0)]
            classes = shifted(classes, seen, classes.centres)
        found[task] = classes
    return found


def test_heads_of_the_mean_are_those_of_the_classes_in_it(pool: Pool) -> None:
    model = pool.mean()
    assert_heads(model, heads_on(pool, mean(pool.tasks), mean_classes(pool, 4)))
    assert model.before is not None
    assert_heads(model.before(3), heads_on(pool, mean(pool.tasks[:3]), mean_classes(pool, 3)))


def test_a_mean_may_answer_with_the_classes_of_some_tasks(pool: Pool) -> None:
    """The network of the mean of all, and the heads of these tasks' classes alone."""
    every, chosen = pool.mean(), pool.tasks[2:0:-1]
    some = pool.mean(answer=chosen)
    assert list(some.classes) == list(pool.tasks[1:3])
    assert some.recipe["weights"] == every.recipe["weights"]
    assert some.before is None and every.before is not None
    assert same(dict(some.network.named_parameters()), dict(every.network.named_parameters()))
    known = mean_classes(pool, 4)
    assert_heads(
        some, heads_on(pool, mean(pool.tasks).answering(chosen, pool.tasks), {t: known[t] for t in some.classes})
    )
    with pytest.raises(InputError, match="unknown task 'nothing'"):
        pool.mean(answer=["nothing"])


def test_models_of_a_pool_have_its_scale_and_heads_of_the_classes_there(tmp_path: Path) -> None:
    training = replace(QUICK, mean_scale=1.5)
    scaled = learn(backbone(), stream(3), training=training, out=tmp_path / "pool")
    tasks = scaled.tasks
    model = scaled.mean()
    assert model.recipe["weights"] == pytest.approx(dict.fromkeys(tasks, 0.5))
    assert model.recipe["heads"] == "prototypes"
    at_scale = mean_classes(scaled, 3, scaled=True)
    assert_heads(model, heads_on(scaled, mean(tasks, 1.5), at_scale))
    assert_heads(scaled.unlearn(tasks[0], mode="negate"), model.head.head())
    plain = scaled.weighted(mean(tasks).weights)
    assert_heads(plain, heads_on(scaled, mean(tasks), mean_classes(scaled, 3)))
    assert not torch.allclose(plain.head.weight, model.head.weight, rtol=1e-3)
    assert model.before is not None
    assert model.before(2).recipe["weights"] == pytest.approx(dict.fromkeys(tasks[:2], 0.75))
    assert scaled.specialize(tasks[:1]).recipe["weights"] == {tasks[0]: 1.0}
    assert scaled.specialize(tasks[1:]).recipe["weights"] == scaled.unlearn(tasks[0]).recipe["weights"]
    assert scaled.unlearn(tasks[0]).recipe["weights"] == pytest.approx(dict.fromkeys(tasks[1:], 0.75))
    assert Pool.open(scaled.path).mean_scale == 1.5


def test_of_the_mean_and_its_scaled_one_the_nearer_is_taken(tmp_path: Path) -> None:
    """Two of these three coefficients are the scaled mean's; the third is so far that the plain one is nearer."""
    scaled = learn(backbone(), stream(3), training=replace(QUICK, mean_scale=1.5), out=tmp_path / "pool")
    tasks, at_theta0 = scaled.tasks, {t: scaled.module(t).statistics.gaussians() for t in scaled.tasks}
    for third, start, share in (
        (0.12, mean_classes(scaled, 3), 1 / 3),
        (0.4, mean_classes(scaled, 3, scaled=True), 0.5),
    ):
        w = dict(zip(tasks, (0.5, 0.5, third), strict=True))
        drifts = [(scaled.module(t).drift, 0.5 * (w[t] - share)) for t in tasks if w[t] != share]
        seen = {t: shifted(start[t], drifts, at_theta0[t].centres) for t in tasks}
        assert_heads(scaled.weighted(w), heads_on(scaled, weighted(tasks, w), seen))


def test_heads_near_the_mean_are_carried_from_there_and_others_from_theta0(pool: Pool) -> None:
    tasks = pool.tasks
    at_theta0 = {t: pool.module(t).statistics.gaussians() for t in tasks}
    some = {tasks[0]: 0.1, tasks[2]: 0.05}
    cases = [
        (pool.unlearn(tasks[0]), unlearn(tasks, tasks[0]), dict.fromkeys(tasks[1:], 1 / 3), True),
        (pool.weighted(some), weighted(tasks, some), some, False),
        (pool.specialize([tasks[1]], all_classes=True), specialize(tasks, [tasks[1]], all_classes=True), None, False),
        (pool.compose(mean(tasks), heads="compensated"), mean(tasks), dict.fromkeys(tasks, 1 / 4), False),
    ]
    for model, recipe, coefficients, from_mean in cases:
        start, share = (mean_classes(pool, 4), 1 / 4) if from_mean else (at_theta0, 0.0)
        w = coefficients or {tasks[1]: 1.0}
        part = 0.5 if from_mean else 1.0  # of the way from a mean
        drifts = [(pool.module(t).drift, part * (w.get(t, 0.0) - share)) for t in tasks]
        seen = {t: shifted(start[t], drifts, at_theta0[t].centres) for t in recipe.tasks}
        assert_heads(model, heads_on(pool, recipe, seen))


@given(parts=st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any))
def test_the_nearer_of_mean_and_theta0_is_where_heads_come_from(parts: list[int]) -> None:
    w = {t: n / 12 for t, n in zip(NAMES, parts, strict=True) if n}
    to_mean = math.sqrt(sum((w.get(t, 0.0) - 0.25) ** 2 for t in NAMES))
    further = to_mean - min(0.5, 0.86 * math.sqrt(sum(x * x for x in w.values())))
    expected = () if further > 0 else NAMES
    if abs(further) > 1e-8 and list(w.values()) != [1.0]:
        assert prototype_tasks(weighted(NAMES, w), NAMES, "prototypes") == expected
    assert prototype_tasks(weighted(NAMES, w), NAMES, "compensated") == ()


def test_free_coefficients_are_exact_and_their_heads_are_carried_along(pool: Pool) -> None:
    """Any sign and sum: theta0 + sum w tau; heads are not those of the mean, and move with the coefficients."""
    one, two = pool.tasks[:2]
    model = pool.weighted({one: 1.5, two: -0.5})
    for name, w in trainable(model.network, pool.backbone).items():
        expected = pool.backbone.trainable[name] + 1.5 * pool.vector(one)[name] - 0.5 * pool.vector(two)[name]
        torch.testing.assert_close(w.detach(), expected)
    known = [pool.module(task) for task in pool.tasks]
    recipe = weighted(pool.tasks, {one: 1.5, two: -0.5})
    prototypes = [m for m in known if m.task in prototype_tasks(recipe, pool.tasks, "prototypes")]
    by_hand = compose_heads(known[:2], recipe, "prototypes", prototypes)
    assert torch.equal(model.head.weight, by_hand.weight)
    less = pool.weighted({one: 1.4, two: -0.4})
    assert not torch.equal(model.head.weight, less.head.weight)
    assert not torch.equal(model.head.weight, pool.weighted({one: 0.5, two: 0.5}).head.weight)


def test_a_negated_composition_keeps_the_heads_of_the_mean(pool: Pool) -> None:
    negated = pool.unlearn(pool.tasks[0], mode="negate", scale=2.0)
    assert torch.equal(negated.head.weight, pool.mean().head.weight)


def test_a_module_that_answers_alone_keeps_its_own_head(pool: Pool) -> None:
    module, model = pool.module(pool.tasks[1]), pool.specialize([pool.tasks[1]])
    assert torch.equal(model.head.weight, module.head.weight)
    assert torch.equal(model.head.bias, module.head.bias - module.head.weight @ module.shift)
    features, mean_at_theta0 = (
        network(GREY.normalize(stream()[1].train.tensor(GREY))).mean(0)
        for network in (model.network, pool.backbone.model)
    )
    torch.testing.assert_close(module.shift, features - mean_at_theta0, rtol=1e-4, atol=1e-5)


def test_unlearning_by_dropping_takes_the_classes_by_negation_only_the_vector(pool: Pool) -> None:
    gone = pool.tasks[1]
    dropped, negated = pool.unlearn(gone), pool.unlearn(gone, mode="negate")
    assert gone not in dropped.classes
    assert not set(pool.classes[gone]) & set(dropped.labels)
    assert negated.labels == pool.mean().labels
    for name, w in trainable(negated.network, pool.backbone).items():
        expected = pool.backbone.trainable[name] + sum(pool.vector(t)[name] for t in pool.tasks if t != gone) / 4
        torch.testing.assert_close(w, expected)


def test_frozen_model_is_theta0_with_the_discriminant(pool: Pool) -> None:
    model, classes = pool.frozen(), [s.gaussians() for s in pool.statistics()]
    assert same(model.network.state_dict(), pool.backbone.model.state_dict())
    assert torch.equal(model.head.weight, discriminant(Gaussians.join(classes)).weight)
    some = pool.frozen([pool.tasks[3], pool.tasks[1]])
    assert some.labels == pool.classes[pool.tasks[1]] + pool.classes[pool.tasks[3]]
    assert torch.equal(some.head.weight, discriminant(Gaussians.join([classes[1], classes[3]])).weight)


def test_composition_without_vectors_has_the_heads_of_the_frozen_backbone(pool: Pool) -> None:
    model = pool.compose(Recipe({}, pool.tasks, "nothing"))
    assert torch.equal(model.head.weight, pool.frozen().head.weight)


def test_history_of_a_model_is_composed_of_the_first_modules(pool: Pool) -> None:
    model = pool.mean()
    assert model.before is not None
    early = model.before(2)
    assert same(early.network.state_dict(), pool.specialize(pool.tasks[:2]).network.state_dict())
    known = [pool.module(t) for t in pool.tasks[:2]]
    own = pool.compose(mean(pool.tasks), heads="own").before
    assert own is not None
    assert torch.equal(own(2).head.weight, torch.cat([m.head.weight for m in known]))
    assert pool.unlearn(pool.tasks[0], mode="negate", scale=1.0).before is None


def test_logits_are_of_normalised_images_in_any_batches(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = pool.mean(), stream()[0].test.tensor(pool.backbone.preprocessing)
    whole = model.logits(images)
    x = (images.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(whole, model.head(model.network(x)))
    monkeypatch.setattr("intarsia.backbones.forward.BATCH", 3)
    torch.testing.assert_close(model.logits(images), whole)


def test_a_saved_model_loads_bit_for_bit(pool: Pool, tmp_path: Path) -> None:
    model, images = pool.unlearn(pool.tasks[2]), stream()[0].test.tensor(pool.backbone.preprocessing)
    model.save(tmp_path / "model")
    again = ComposedModel.load(tmp_path / "model", backbone())
    assert same(model.state_dict(), again.state_dict())
    assert torch.equal(model.logits(images), again.logits(images))
    assert (again.classes, again.labels, again.recipe) == (model.classes, model.labels, model.recipe)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="not an empty folder"):
        model.save(tmp_path / "model")
    with pytest.raises(InputError, match="not a composed model"):
        ComposedModel.load(tmp_path)
    assert contents(tmp_path) == before


def test_adapters_seen_through_a_pool_are_the_merged_model(pool: Pool) -> None:
    """On the same images the adapter on theta0 and the specialized model give the same features."""
    images = pool.backbone.preprocessing.normalize(stream()[1].test.tensor(pool.backbone.preprocessing))
    task = pool.tasks[1]
    model = pool.specialize([task])
    with pool.backbone.attach(pool.adapter, seeded(0)) as attachment:
        shake(attachment, 1)
        attachment.load(pool.module(task).vector)
        adapted = pool.backbone.features(images)
    torch.testing.assert_close(model.network(images), adapted)
