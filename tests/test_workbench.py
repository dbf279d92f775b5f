"""The tables of docs/results.md are made by the benchmarks' workbench: it learns what ``learn`` learns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drift_maps import features_of
from mean_scale import accuracy, scaled
from negation import at_control
from subsets import Subsets, drawn

from intarsia import IEL, ITA, Backbone, LoRA, TaskStream, evaluate, learn
from intarsia.class_stats.prototypes import in_mean
from intarsia.training.recommended import recommended
from watch import Told
from workbench import Setting, Workbench

pytestmark = pytest.mark.slow


def test_a_benchmark_tells_every_row_as_it_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is stopped leaves what it found."""
    rows = tmp_path / "new" / "rows.jsonl"
    told = Told(rows)
    for number, seconds in enumerate((1.25, 2.5), start=1):
        told.row({"phase": f"step {number}", "seconds": seconds})
        assert [json.loads(line)["phase"] for line in rows.read_text().splitlines()] == ["step 1", "step 2"][:number]
        assert f"step {number}, seconds {seconds}" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["ita", "iel"])
def test_the_workbench_learns_what_learn_learns(method: str, tmp_path: Path) -> None:
    stream = TaskStream.load("sketches", max_per_class=2).subset(range(3))
    strength, training = recommended(method, "lora")
    training = replace(training, epochs=1, seed=3)
    regularizer = ITA(strength) if method == "ita" else IEL(strength)
    pool = learn(
        Backbone.load(), stream, out=tmp_path / "pool", adapter=LoRA(16), regularizer=regularizer, training=training
    )
    bench = Workbench(stream, 3)
    setting = Setting("ita" if method == "ita" else "iel", "lora", strength, training)
    modules = bench.learn(setting)
    for made in modules:
        kept = pool.module(made.card.task)
        for name, tau in kept.dense(pool.adapter, pool.backbone.trainable).items():
            torch.testing.assert_close(made.dense(LoRA(16), bench.backbone.trainable)[name], tau)
        assert (made.prototypes.again is None) == (kept.prototypes.again is None)
    found = evaluate(bench.compose(setting, modules), stream)
    assert found.accuracy_matrix == evaluate(pool.mean(), stream).accuracy_matrix


def test_a_setting_that_needs_another_set_up_is_refused() -> None:
    stream = TaskStream.load("sketches", max_per_class=4).subset(range(1))
    strength, training = recommended("ita", "lora")
    with pytest.raises(ValueError, match="protocol paper: steps 1 to 4 had recommended"):
        Workbench(stream, 0).learn(Setting("ita", "lora", strength, replace(training, protocol="paper")))


def test_a_scale_is_measured_on_any_pool_as_if_it_had_been_learned_at_it(tmp_path: Path) -> None:
    stream = TaskStream.load("sketches", max_per_class=3).subset(range(4))  # pairs leave two out: their mean is plain
    _, training = recommended("ita", "lora")
    found = []
    for scale in (1.0, 2.0):
        made = replace(training, epochs=1, mean_scale=scale)
        pool = learn(Backbone.load(), stream, out=tmp_path / f"{scale:g}", training=made)
        found.append(scaled(pool, stream, 2.0))
    assert found[0] == found[1]
    seen = in_mean([module.prototypes.scaled or module.prototypes for module in pool.values()])
    held = features_of(pool.backbone, pool.mean().network, [task.test for task in stream])
    assert found[1]["carried"] == accuracy(seen, held, stream)


def test_negation_is_compared_where_the_others_have_kept_as_much() -> None:
    points = [(0.0, 60.0, 50.0), (0.5, 40.0, 49.0), (1.0, 20.0, 45.0)]
    assert at_control(points, 0.94) == (0.75, 30.0)
    assert at_control(points, 0.8) is None


def test_subsets_are_drawn_once_and_in_the_pools_order() -> None:
    asked = Subsets(pools=(), sizes=(2, 3), draws=4)
    found = list(drawn(tuple("abcd"), asked))
    assert len(set(found)) == len(found) == 8
    assert all(list(subset) == sorted(subset) for subset in found)
    assert found == list(drawn(tuple("abcd"), asked))
