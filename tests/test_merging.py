"""Merge rules on cases whose answer is known by hand, and what must hold whatever the vectors."""

import warnings
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils import merge_utils as peft
from torch import Tensor

from cases import QUICK, backbone, randn, same, seeded, stream
from intarsia import InputError, LoRA, Pool, TaskVector, learn
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.merging.choices import Rule
from intarsia.merging.rules.breadcrumbs import breadcrumbs
from intarsia.merging.rules.core_space import in_core_space
from intarsia.merging.rules.dare import dare
from intarsia.merging.rules.fisher_mean import fisher_mean
from intarsia.merging.rules.isotropic import iso_c, iso_cts
from intarsia.merging.rules.table import RULES, merged_vector
from intarsia.merging.rules.task_arithmetic import task_arithmetic
from intarsia.merging.rules.ties import ties
from intarsia.merging.rules.tsv import tsv
from intarsia.merging.rules.vectors import best_scale, coefficients
from intarsia.pool import merged


def vector(*entries: float) -> TaskVector:
    """Two weights: the first entry, and the others."""
    row = torch.tensor(entries, dtype=torch.float64)
    return TaskVector({"a": row[:1, None], "b": row[None, 1:]})


def flat(tau: TaskVector) -> Tensor:
    return torch.cat([t.flatten() for t in tau.values()])


def some(count: int, seed: int) -> list[TaskVector]:
    return [TaskVector({n: randn(3, 4, seed=seed + 7 * i + k) for k, n in enumerate("ab")}) for i in range(count)]


def test_ties_by_hand() -> None:
    """Half of four entries is kept: 3 and -4 of the first, 5 and 2 of the second, -9 and -1 of the third."""
    one, two, three = vector(3, -4, 0.5, 1), vector(5, 0.1, 2, 1), vector(0.3, -9, -1, 0.2)
    expected = torch.tensor([4.0, -6.5, 2.0, 0.0], dtype=torch.float64)  # place 3: 2 - 1 > 0, so only 2 counts
    torch.testing.assert_close(flat(ties([one, two, three], density=0.5)), expected)
    torch.testing.assert_close(flat(ties([one, two, three], density=0.5, scale=0.3)), 0.3 * expected)


@given(seed=st.integers(0, 99), count=st.integers(1, 4))
def test_ties_of_equal_vectors_is_the_vector(seed: int, count: int) -> None:
    (tau,) = some(1, seed)
    torch.testing.assert_close(flat(ties([tau] * count, density=1.0)), flat(tau))
    trimmed = flat(ties([tau] * count, density=0.25))
    assert int((trimmed != 0).sum()) == 6
    torch.testing.assert_close(trimmed[trimmed != 0], flat(tau)[trimmed != 0])
    assert float(trimmed[trimmed != 0].abs().min()) > float(flat(tau)[trimmed == 0].abs().max())


@given(seed=st.integers(0, 99))
def test_ties_lies_between_the_entries_that_agree(seed: int) -> None:
    taus = some(3, seed)
    merged, entries = flat(ties(taus, density=1.0)), torch.stack([flat(t) for t in taus])
    assert torch.equal(merged.sign(), entries.sum(0).sign())
    assert bool((merged.abs() <= entries.abs().max(0).values + 1e-12).all())


@pytest.mark.parametrize("density", [0.125, 0.25, 0.5, 1.0])
def test_ties_is_pefts(density: float) -> None:
    """peft takes a task vector as one tensor; its entries here are floats, of which no two have equal size."""
    taus = some(4, 11)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density", category=UserWarning)
        expected = peft.ties([flat(tau) for tau in taus], torch.ones(4, dtype=torch.float64), density)
    torch.testing.assert_close(flat(ties(taus, density=density)), expected)


def test_dare_is_pefts_in_distribution() -> None:
    """An entry that both kept is tau / density in both; mean and spread over many draws agree."""
    density, taus, generator = 0.25, some(3, 5), seeded(3)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    ours = torch.stack([flat(dare(taus, density=density, generator=generator)) for _ in range(3000)])
    theirs = torch.stack([peft.dare_linear([flat(t) for t in taus], weights, density) for _ in range(3000)])
    z = (ours.mean(0) - theirs.mean(0)) / ((ours.var(0) + theirs.var(0)) / 3000).sqrt()
    assert float(z.abs().max()) < 4
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.1, atol=0.0)
    one = taus[:1]
    kept = flat(dare(one, density=density, generator=generator))
    pruned = peft.prune(flat(one[0]), density, method="random", rescale=True)
    both = (kept != 0) & (pruned != 0)
    assert bool(both.any())
    torch.testing.assert_close(kept[both], pruned[both])


def test_dare_without_dropping_is_the_mean_and_with_it_unbiased() -> None:
    taus = some(3, 5)
    mean = torch.stack([flat(t) for t in taus]).mean(0)
    torch.testing.assert_close(flat(dare(taus, density=1.0, generator=seeded(0))), mean)
    generator = seeded(1)
    draws = torch.stack([flat(dare(taus, density=0.4, generator=generator)) for _ in range(3000)])
    z = (draws.mean(0) - mean) / (draws.std(0) / len(draws) ** 0.5)
    assert float(z.abs().max()) < 4
    assert 0.5 < float((draws == 0).double().mean() / 0.6**3) < 1.5


def test_fisher_mean_by_hand_and_at_its_ends() -> None:
    one, two = some(2, 3)
    equal = {n: torch.ones(3, 4, dtype=torch.float64) for n in "ab"}
    none = {n: torch.zeros(3, 4, dtype=torch.float64) for n in "ab"}
    thrice = {n: 3 * f for n, f in equal.items()}
    torch.testing.assert_close(flat(fisher_mean([one, two], [equal, equal])), flat(0.5 * (one + two)))
    torch.testing.assert_close(flat(fisher_mean([one, two], [none, none])), flat(0.5 * (one + two)))
    torch.testing.assert_close(flat(fisher_mean([one, two], [none, equal])), flat(two), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flat(fisher_mean([one, two], [equal, thrice])), flat(0.25 * one + 0.75 * two))


def low_rank(count: int, rank: int, seed: int, height: int = 7, width: int = 9) -> list[TaskVector]:
    """Vectors of rank ``rank`` in two weights."""

    def one(seed: int) -> Tensor:
        return randn(height, rank, seed=seed) @ randn(rank, width, seed=seed + 4)

    return [TaskVector({n: one(seed + 9 * i + k) for k, n in enumerate("ab")}) for i in range(count)]


def orthogonal(*sizes: float) -> list[TaskVector]:
    """A vector per size, each of rank one in a direction of its own."""
    q = torch.linalg.qr(randn(6, 6, seed=1)).Q
    p = torch.linalg.qr(randn(5, 5, seed=2)).Q
    return [TaskVector({"a": size * torch.outer(q[:, i], p[:, i])}) for i, size in enumerate(sizes)]


def spectrum(tau: Tensor) -> Tensor:
    return torch.linalg.svdvals(tau)


def test_breadcrumbs_by_hand() -> None:
    """Of five entries the smallest two and the largest one are left out, of each weight and vector apart."""
    one = TaskVector({"a": torch.tensor([[1.0, -5.0, 2.0, 0.5, 3.0]], dtype=torch.float64)})
    two = TaskVector({"a": torch.tensor([[4.0, 1.0, -2.0, 9.0, 3.0]], dtype=torch.float64)})
    found = breadcrumbs([one, two], smallest=0.4, largest=0.2)["a"]
    torch.testing.assert_close(found, torch.tensor([[4.0, 0.0, 2.0, 0.0, 6.0]], dtype=torch.float64))


def test_rules_of_singular_directions_add_vectors_that_share_none() -> None:
    """TSV-M leaves orthogonal tasks as they are; Iso-C makes all their directions as long as the mean one."""
    taus = orthogonal(4.0, 2.0, 1.0, 1.0)
    total = task_arithmetic(taus)
    torch.testing.assert_close(tsv(taus)["a"], total["a"])
    for rule in (iso_c, iso_cts):
        found = rule(taus)["a"]
        torch.testing.assert_close(spectrum(found)[:4], torch.full((4,), 2.0, dtype=torch.float64))
        torch.testing.assert_close(spectrum(found)[4:], torch.zeros(1, dtype=torch.float64))
        directions = [found.flatten() @ tau["a"].flatten() for tau in taus]
        torch.testing.assert_close(torch.stack(directions), torch.tensor([8.0, 4.0, 2.0, 2.0], dtype=torch.float64))


@given(seed=st.integers(0, 99))
def test_tsv_of_one_vector_is_the_vector_and_of_more_has_no_shared_direction(seed: int) -> None:
    (tau,) = some(1, seed)
    torch.testing.assert_close(flat(tsv([tau])), flat(tau))
    both = tsv([tau, tau])["a"]  # the same first direction twice: after the polar factor they are two
    each = min(tau["a"].shape) // 2
    assert int((spectrum(both) > 1e-9).sum()) <= 2 * each


def test_iso_c_keeps_the_directions_of_the_sum() -> None:
    taus = low_rank(3, 2, seed=5)
    total, found = task_arithmetic(taus), iso_c(taus)
    for name in "ab":
        u, s, v = torch.linalg.svd(total[name], full_matrices=False)
        torch.testing.assert_close(found[name], s[:6].mean() * u[:, :6] @ v[:6])


def test_iso_cts_gives_every_task_directions_of_its_own() -> None:
    """One strong task and two weak ones: the weak ones' own directions are in the merged update, as long as any."""
    taus = orthogonal(100.0, 90.0, 1.0, 0.9)
    strong, weak = taus[0] + taus[1], [taus[2], taus[3]]
    found = iso_cts([strong, *weak], common=0.25)["a"]
    for tau in (strong, *weak):
        assert float(found.flatten() @ tau["a"].flatten()) > 0
    values = spectrum(found)
    kept = values[values > 1e-9]
    torch.testing.assert_close(kept, torch.full_like(kept, float(kept[0])))
    torch.testing.assert_close(iso_cts(taus, common=1.0)["a"], iso_c(taus)["a"])


def test_nothing_is_lost_in_core_space() -> None:
    """Sums, TSV-M and Iso-C come to the same there; TIES does not, since entries are others."""
    taus = low_rank(3, 1, seed=3)
    for rule in (task_arithmetic, iso_c):
        torch.testing.assert_close(flat(in_core_space(taus, rule)), flat(rule(taus)))
    inside = in_core_space(taus, ties)
    assert not torch.allclose(flat(inside), flat(ties(taus)))
    torch.testing.assert_close(flat(in_core_space(taus[:1], lambda v: ties(v, density=1.0))), flat(taus[0]))


@pytest.mark.parametrize("rule", list(RULES))
def test_a_rule_of_zero_vectors_is_zero_and_of_turned_ones_turned(rule: Rule) -> None:
    """No rule makes something of nothing; a change of every sign is a change of the result's."""
    nothing = [TaskVector({n: torch.zeros(3, 4, dtype=torch.float64) for n in "ab"})] * 2
    assert not bool(flat(merged_vector(rule, nothing, [], 0)).any())
    taus = some(3, 8)
    merged_taus, turned = (merged_vector(rule, v, [], 0) for v in (taus, [-tau for tau in taus]))
    torch.testing.assert_close(flat(turned), -flat(merged_taus))


@given(seed=st.integers(0, 99), sizes=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_coefficients_of_a_combination_are_its_own(seed: int, sizes: list[float]) -> None:
    taus = some(3, seed)
    total = sizes[0] * taus[0] + sizes[1] * taus[1] + sizes[2] * taus[2]
    found = coefficients([(total[n], [tau[n] for tau in taus]) for n in total])
    assert found == pytest.approx(sizes, abs=1e-8)
    twice = coefficients([(total[n], [taus[0][n], taus[0][n]]) for n in total])  # one vector twice: halves
    assert twice[0] == pytest.approx(twice[1])


def test_the_best_scale_is_the_least_sum_of_quadratic_losses() -> None:
    taus = some(3, 2)
    fishers = [{n: randn(3, 4, seed=40 + i).square() for n in "ab"} for i in range(3)]
    vector = ties(taus, density=0.5)

    def loss(scale: float) -> float:
        return sum(float((scale * vector - tau).norm(f) ** 2) for tau, f in zip(taus, fishers, strict=True))

    best = best_scale(vector, taus, fishers)
    assert loss(best) < min(loss(best * 0.99), loss(best * 1.01))
    assert best_scale(task_arithmetic(taus), taus, fishers[:1]) == pytest.approx(1 / 3)  # under one Fisher: the mean
    assert best_scale(0.0 * vector, taus, fishers) == 1.0


def test_what_cannot_be_merged_is_refused() -> None:
    (tau,) = some(1, 0)
    for call, said in (
        (lambda: breadcrumbs([tau], smallest=0.9, largest=0.1), "less than 1 together"),
        (lambda: iso_cts([tau], common=1.5), "share 1.5"),
        (lambda: tsv([]), "no task vector"),
        (lambda: ties([]), "no task vector"),
        (lambda: ties([tau], density=0.0), "density 0.0"),
        (lambda: ties([tau], density=1.5), "density 1.5"),
        (lambda: dare([tau], density=0.0, generator=seeded(0)), "density 0.0"),
        (lambda: fisher_mean([tau], []), "0 Fishers for 1"),
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_a_pool_with_the_mean_as_vector_is_its_mean(pool: Pool) -> None:
    taus = [pool.vector(task) for task in pool.tasks]
    total = sum(taus[1:], start=taus[0]) * (1 / len(taus))
    ours, plain = pool.with_vector(total, "by hand"), pool.mean()
    assert ours.classes == plain.classes
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    assert ours.recipe["name"] == "by hand"


@pytest.fixture(scope="module")
def with_fishers(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    out = tmp_path_factory.mktemp("kept") / "p"
    return learn(backbone(), stream(2), keep_fishers=True, adapter=LoRA(2), training=QUICK, out=out)


@pytest.mark.parametrize("rule", get_args(Rule))
def test_a_pool_is_merged_by_a_rule(rule: Rule, with_fishers: Pool) -> None:
    """At the scale asked for; else at the one its Fishers say, which is told."""
    learned = with_fishers
    vectors = [learned.vector(task) for task in learned.tasks]
    fishers = [fisher for t in learned.tasks if isinstance(fisher := learned.fisher(t), DiagonalFisher)]
    vector = merged_vector(rule, vectors, [fisher.mean() for fisher in fishers], 7)
    found = merged(learned, rule, scale=0.5, seed=7)
    assert same(found.state_dict(), learned.with_vector(0.5 * vector, rule).state_dict())
    scale = 1.0 if rule == "sum" else best_scale(vector, vectors, [fisher.sums for fisher in fishers])
    assert merged(learned, rule, seed=7).recipe["name"] == f"{rule}, scale {scale:.4g}"


def test_a_rule_merges_some_of_the_modules(pool: Pool) -> None:
    """Half the sum of two is their mean: the specialist of both, whose heads and classes it has."""
    pair = [pool.tasks[2], pool.tasks[0]]
    found, expert = merged(pool, "sum", pair, scale=0.5), pool.specialize(pair)
    assert found.classes == expert.classes
    torch.testing.assert_close(found.state_dict(), expert.state_dict(), rtol=1e-4, atol=1e-5)
    cut = merged_vector("ties", [pool.vector(task) for task in pool.tasks if task in pair], [], 0)
    assert same(merged(pool, "ties", pair, scale=1).state_dict(), pool.with_vector(cut, "x", pair).state_dict())
    with pytest.raises(InputError, match="'cars'"):
        merged(pool, "ties", ["cars"])


def test_the_heads_of_a_rule_are_those_of_the_nearest_combination(pool: Pool) -> None:
    taus = [pool.vector(task) for task in pool.tasks]
    some_of = pool.with_vector(0.7 * taus[0] + 0.2 * taus[1], "by hand")
    weights = {pool.tasks[0]: 0.7, pool.tasks[1]: 0.2, **dict.fromkeys(pool.tasks[2:], 0.0)}
    torch.testing.assert_close(some_of.head.weight, pool.weighted(weights).head.weight, rtol=1e-4, atol=1e-5)


def test_a_vector_over_other_weights_is_refused(pool: Pool) -> None:
    with pytest.raises(InputError, match="other weights than the pool's"):
        pool.with_vector(TaskVector({"blocks.0.attn.qkv.weight": torch.ones(2, 2)}), "wrong")
