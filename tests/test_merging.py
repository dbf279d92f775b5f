"""Merge rules on cases whose answer is known by hand, and what must hold whatever the vectors."""

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils import merge_utils as peft
from torch import Tensor

from cases import QUICK, backbone, randn, same, seeded, stream
from intarsia import InputError, LoRA, Pool, TaskVector, learn
from intarsia.merging.choices import Rule
from intarsia.merging.dare import dare
from intarsia.merging.fisher_mean import fisher_mean
from intarsia.merging.ties import ties
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


def test_what_cannot_be_merged_is_refused() -> None:
    (tau,) = some(1, 0)
    for call, said in (
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


@pytest.mark.parametrize("rule", ["ties", "dare", "fisher"])
def test_a_pool_is_merged_by_a_rule(rule: Rule, tmp_path: Path) -> None:
    options = {"adapter": LoRA(2), "training": QUICK, "out": tmp_path / "p"}
    learned = learn(backbone(), stream(2), keep_fishers=True, **options)
    vectors = [learned.vector(task) for task in learned.tasks]
    fishers = [fisher.mean() for task in learned.tasks if (fisher := learned.fisher(task)) is not None]
    expected = {
        "ties": ties(vectors),
        "dare": dare(vectors, generator=seeded(7)),
        "fisher": fisher_mean(vectors, fishers),
    }[rule]
    found = merged(learned, rule, seed=7).state_dict()
    assert same(found, learned.with_vector(expected, rule).state_dict())


def test_a_vector_over_other_weights_is_refused(pool: Pool) -> None:
    with pytest.raises(InputError, match="other weights than the pool's"):
        pool.with_vector(TaskVector({"blocks.0.attn.qkv.weight": torch.ones(2, 2)}), "wrong")
