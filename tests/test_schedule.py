"""The budget of a training: every image once an epoch, and the learning rate of each batch."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cases import seeded, settings
from intarsia.training.schedule import batches, cosine


def alike(images: int) -> torch.Tensor:
    """Labels of so many images of one class."""
    return torch.zeros(images, dtype=torch.long)


@given(images=st.integers(1, 50), size=st.integers(2, 9), epochs=st.integers(1, 3))
@example(images=33, size=32, epochs=2)
def test_every_epoch_sees_every_image_once(images: int, size: int, epochs: int) -> None:
    made = list(batches(settings(epochs=epochs, batch_size=size), alike(images), seeded(1)))
    alone = images % size == 1 and images > 1  # a last batch of one image joins the one before
    assert len(made) == epochs * (math.ceil(images / size) - alone)
    assert all(len(b.index) > 1 for b in made) or images == 1
    for epoch in range(epochs):
        own = [b for b in made if b.epoch == epoch]
        assert sorted(torch.cat([b.index for b in own]).tolist()) == list(range(images))
        assert [b.number for b in own] == list(range(1, len(own) + 1))
        assert [b.ends_epoch for b in own] == [False] * (len(own) - 1) + [True]


def test_rate_warms_up_by_the_batch_and_falls_by_the_epoch() -> None:
    training = settings(epochs=4, batch_size=5, lr=2.0, warmup=0.5)
    made = list(batches(training, alike(20), seeded(1)))
    assert [b.lr for b in made[:4]] == pytest.approx([1.0, 2.0, 2.0, 2.0])
    assert [b.cosine for b in made[::4]] == pytest.approx([1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert [b.lr for b in made[4:]] == pytest.approx([2 * b.cosine for b in made[4:]])
    assert all(b.lr == 2 * b.cosine for b in batches(replace(training, warmup=0.0), alike(20), seeded(1)))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=7.0)
    made[0].set_rate(optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_the_papers_rate_and_scale_follow_a_quarter_cosine() -> None:
    """cos(0.495 pi e / (K - 1)), by hand for K = 3: 1, cos(44.55 degrees), cos(89.1 degrees); 1 for a single epoch."""
    training = settings(protocol="paper", epochs=3, batch_size=5, lr=2.0, warmup=0.0)
    made = list(batches(training, alike(10), seeded(1)))
    assert [b.cosine for b in made[::2]] == pytest.approx([1.0, 0.7126385, 0.0157073], abs=1e-6)
    assert [b.lr for b in made] == pytest.approx([2 * b.cosine for b in made])
    assert [b.cosine for b in batches(replace(training, epochs=1), alike(4), seeded(1))] == [1.0]
    assert sum(cosine(replace(training, epochs=20), e) for e in range(20)) == pytest.approx(12.72, abs=0.01)


def test_order_is_a_function_of_the_generator() -> None:
    orders = [
        torch.cat([b.index for b in batches(settings(epochs=2), alike(300), seeded(s))]).tolist() for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:300] != orders[0][300:]


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_balanced_batches_have_every_class_equally_often(counts: list[int], seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.cat([b.index for b in batches(settings(epochs=1, class_balanced=True), labels, seeded(seed))])
    assert len(order) == len(labels)  # as many steps as without
    share = math.ceil(len(labels) / len(counts))
    spare = share * len(counts) - len(labels)
    seen = torch.bincount(labels[order], minlength=len(counts))
    assert share - spare <= seen.min() <= seen.max() <= share
    for kind in range(len(counts)):  # none again before all once
        times = torch.bincount(order[labels[order] == kind], minlength=len(labels))[labels == kind]
        assert times.max() - times.min() <= 1 + spare
    if len(set(counts)) == 1:
        assert sorted(order.tolist()) == list(range(len(labels)))


def test_balanced_batches_are_shuffled() -> None:
    labels = torch.arange(2).repeat_interleave(torch.tensor([80, 2]))
    made = list(batches(settings(epochs=2, batch_size=10, class_balanced=True), labels, seeded(0)))
    assert all(0 < labels[batch.index].float().mean() < 1 for batch in made if len(batch.index) == 10)
    assert made[0].index.tolist() != made[9].index.tolist()
