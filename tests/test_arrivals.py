"""Tasks that become known at different times: the pool of adding group by group, without waiting for any training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cli import TASKS, refused, result
from test_engines import APART, OPTIONS, InlineEngine, StoppedError, none_twice

from cases import backbone, contents, photographs, small_vit, stream
from intarsia import IEL, Backbone, InputError, Pool, TaskStream, learn
from intarsia.adapters.full import Full
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.settings import Training

pytestmark = pytest.mark.slow
RESUMED = {**OPTIONS, "resume": True}
GROUPS = [["task03"], ["task01", "task04"], ["task02"]]


def added(out: Path, **options: Any) -> Path:
    """The pool of adding a group in each run."""
    for number, group in enumerate(GROUPS):
        learn(backbone(), stream().subset(group), out=out, add=number > 0, **{**OPTIONS, **options})
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return added(tmp_path_factory.mktemp("added") / "p")


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": Full(), "keep_fishers": True},
        {"regularizer": IEL(0.1)},
        {"training": replace(OPTIONS["training"], protocol="paper")},
    ],
    ids=["full", "iel", "paper"],
)
def test_one_process_learns_the_pool_of_adding_group_by_group(change: dict[str, Any], tmp_path: Path) -> None:
    added(tmp_path / "added", **change)
    learn(backbone(), stream().arriving(GROUPS), out=tmp_path / "p", **{**OPTIONS, **change})
    assert contents(tmp_path / "p", APART) == contents(tmp_path / "added", APART)


@pytest.mark.parametrize("workers", [1, 3, None])
def test_workers_learn_the_pool_of_adding_group_by_group(workers: int | None, one: Path, tmp_path: Path) -> None:
    for order in range(3):
        out, engine = tmp_path / str(order), InlineEngine(workers=workers, order=order)
        learn(backbone(), stream().arriving(GROUPS), out=out, engine=engine, **OPTIONS)
        assert contents(out, APART) == contents(one, APART)
        assert none_twice(engine.made)


def test_a_card_names_the_tasks_known_when_the_module_began(tmp_path: Path) -> None:
    training = Training(epochs=1, batch_size=4)  # all other tasks that are known: nothing is to be said
    pool = learn(backbone(), stream().arriving(GROUPS), out=tmp_path / "p", training=training)
    known = {"task03": (), "task01": ("task03", "task04"), "task04": ("task03", "task01")}
    known["task02"] = ("task03", "task01", "task04")
    assert {task: pool.card(task).influenced_by.fisher for task in pool.tasks} == known
    assert pool.index.settings["fisher_over"] == "others"
    earlier = Training(fisher_over="earlier")
    with pytest.raises(InputError, match=r"arrivals.*leave fisher-over 'earlier' out"):
        learn(backbone(), stream().arriving(GROUPS), out=tmp_path / "q", training=earlier)


def test_a_group_is_trained_before_later_tasks_are_looked_at(tmp_path: Path) -> None:
    """One worker, so that the order of its calls is that in which they are due."""
    engine = InlineEngine(workers=1)
    learn(backbone(), stream().arriving(GROUPS), out=tmp_path / "p", engine=engine, **OPTIONS)
    assert engine.made.index(("tune", "task03")) < engine.made.index(("features", "task04"))
    assert engine.made.index(("tune", "task04")) < engine.made.index(("tune", "task02"))


@pytest.mark.parametrize("after", [3, 8, 12])
def test_a_driver_that_dies_goes_on_and_so_does_one_process(after: int, one: Path, tmp_path: Path) -> None:
    for name, second in (("many", InlineEngine(order=5)), ("one", None)):
        out, first = tmp_path / name, InlineEngine(dies_after=after, order=after)
        with pytest.raises(StoppedError):
            learn(backbone(), stream().arriving(GROUPS), out=out, engine=first, **OPTIONS)
        with pytest.raises(InputError, match="differs in its stream"):
            learn(backbone(), stream().arriving([*GROUPS[:1], ["task01"], ["task04"], *GROUPS[2:]]), out=out, **RESUMED)
        learn(backbone(), stream().arriving(GROUPS), out=out, engine=second, **RESUMED)
        assert contents(out, APART) == contents(one, APART)
        assert second is None or none_twice(first.made + second.made)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([["task01", "bird"], ["task02"]], ("'bird'", "group 1", "task01, task02")),
        ([["task01"], ["task02", "task01"]], ("'task01'", "group 1", "group 2", "once")),
        ([["task01"]], ("no group", "task02", "--only")),
        ([["task01"], [], ["task02"]], ("Group 2", "empty", "Leave it out")),
        ([[["task01"]], ["task02"]], ("['task01']", "group 1", "task01, task02")),
    ],
    ids=["unknown", "twice", "missing", "empty", "no name"],
)
def test_groups_that_are_not_the_streams_are_refused(groups: Any, said: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        stream(2).arriving(groups)
    assert all(word in str(error.value) for word in said), error.value


def test_a_file_of_arrivals_is_learned_repeated_and_gone_on_with(tmp_path: Path) -> None:
    path, groups, first = tmp_path / "arrivals.json", [["other", "cold"], ["earth"]], tmp_path / "first"
    path.write_text(json.dumps(groups))
    root = photographs(tmp_path)
    (root / "tasks.json").write_text(json.dumps(TASKS))
    data = ("--data", f"folder:{root / 'photos'}", "--split", root / "tasks.json")
    few = ("--backbone", small_vit(root), "--run.no-evaluate")
    result("learn", "--arrivals", path, *data, *few, "--epochs", 1, "--out", first)
    pool = Pool.open(first)
    assert pool.tasks == ("other", "cold", "earth")
    assert pool.card("cold").influenced_by.fisher == ("other",)
    again, added = tmp_path / "again", tmp_path / "added"
    result("learn", "--config", first / "config.json", "--run.no-evaluate", "--out", again)
    begun = ("--training.fisher-over", "others", "--epochs", 1)
    result("learn", *data, "--only", *groups[0], *few, *begun, "--out", added)
    result("learn", *data, "--only", *groups[1], "--run.no-evaluate", "--add", "--out", added)
    apart = {*APART, "config.json", "config-2.json"}
    assert contents(again, apart) == contents(first, apart) == contents(added, apart)

    class StopError(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "earth: training":
            raise StopError

    chosen = TaskStream.load(data[1], split=root / "tasks.json").subset(["cold", "earth", "other"]).arriving(groups)
    out = tmp_path / "stopped"
    with pytest.raises(StopError):
        learn(Backbone.load(small_vit(root)), chosen, out=out, training=Training(epochs=1), progress=stop)
    assert Checkpoint.of(out).asked()["stream"]["changes"][-1] == {"arrivals": groups}
    result("learn", "--resume", "--run.no-evaluate", "--out", out)
    assert contents(out, apart) == contents(first, apart)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("[[", "not JSON"),
        ('{"a": 1}', "expected groups of tasks"),
        ('["animals"]', "expected groups of tasks"),
        ("[]", "no group"),
        ('[["animals"], ["opera"]]', "'opera'"),
    ],
)
def test_a_bad_file_is_a_line_and_nothing_is_written(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "arrivals.json", tmp_path / "p"
    if text is not None:
        path.write_text(text)
    told = refused(capsys, "learn", "--arrivals", path, "--max-per-class", 2, "--out", out)
    assert said in told
    assert len(told.splitlines()) == 1
    assert not out.exists()


def test_arrivals_are_not_for_runs_that_have_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "arrivals.json"
    path.write_text('[["animals"]]')
    told = refused(capsys, "learn", "--resume", "--arrivals", path, "--out", tmp_path / "p")
    assert "--arrivals" in told
    assert "leave it out" in told
    flags = ("--training.fisher-over", "earlier", "--out", tmp_path / "p")
    assert "--arrivals" in refused(capsys, "learn", "--arrivals", path, *flags)
