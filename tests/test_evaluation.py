"""Measures against cases worked out by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import GREY, stream
from intarsia import ComposedModel, InputError, Pool, TaskStream, evaluate
from intarsia.data.records import reloaded
from intarsia.evaluation.answers import Answers
from intarsia.evaluation.kept import Keep, Kept
from intarsia.evaluation.metrics import forgetting, matching_tasks, recorded_stream, target_and_control
from intarsia.heads.head import Head

CLASSES = {"one": ("a", "b"), "two": ("c", "d"), "three": ("e",)}


class Counted(nn.Module):
    """A network that counts the images that pass it, and all copies of it."""

    passed: ClassVar[int] = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        Counted.passed += len(images)
        return self.network(images)


def images_passed(model: ComposedModel, work: Callable[[], object]) -> int:
    """Images that pass the model's network, or one composed by it, meanwhile."""
    before, model.network, Counted.passed = model.network, Counted(model.network), 0
    try:
        work()
    finally:
        model.network = before
    return Counted.passed


class Oracle(nn.Module):
    """Gives as "features" the logits that a table holds for an image; an image is known by its brightness."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, images: Tensor) -> Tensor:
        number = ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long()
        return self.table[number]


def tasks() -> TaskStream:
    """Test images 0 to 7: a b | c c c d | e e; the number is the shade."""
    labels = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])
    shades = torch.arange(8, dtype=torch.uint8)[:, None, None].expand(-1, 8, 8)
    train = torch.zeros(10, 8, 8, dtype=torch.uint8), torch.arange(10) % 5
    split = {name: list(kinds) for name, kinds in CLASSES.items()}
    return TaskStream.from_arrays(train, (shades, labels), ["a", "b", "c", "d", "e"], split=split)


def answering(answers: Sequence[Sequence[int]], count: int = 3) -> ComposedModel:
    """A model of the first tasks whose image i ranks the classes in the order answers[i] (the rest follow)."""
    names = list(CLASSES)[:count]
    width = sum(len(CLASSES[n]) for n in names)
    table = torch.zeros(8, width)
    for i, ranked in enumerate(answers):
        for place, kind in enumerate(ranked):
            table[i, kind] = 10.0 - place
    head = Head(torch.eye(width), torch.zeros(width))
    return ComposedModel(Oracle(table), head, {n: CLASSES[n] for n in names}, GREY, {})


FIRST = [[0], [1]]  # both right
SECOND = [[2, 0], [1], [2], [2], [0, 3], [2, 3]]  # one: 1 of 2; two: 2 of 4
LAST = [[4, 1], [1], [2], [4, 2], [0, 2], [3], [4], [0]]  # one: 1 of 2; two: 2 of 4; three: 1 of 2


def last() -> ComposedModel:
    model = answering(LAST)
    history = {1: answering(FIRST, 1), 2: answering(SECOND, 2)}
    model.before = history.__getitem__
    return model


def test_matrix_and_measures_by_hand() -> None:
    result = evaluate(last(), tasks())
    assert result.tasks == ("one", "two", "three")
    assert result.accuracy_matrix == ((100.0,), (50.0, 50.0), (50.0, 50.0, 50.0))
    assert result.final_accuracy == 50.0  # 4 of 8
    assert result.average_incremental_accuracy == pytest.approx((100 + 50 + 50) / 3)
    assert result.final_forgetting == pytest.approx((50 + 0) / 2)
    # within its task: image 0 says b (wrong); 3 and 4 say c (right); 7 has no other class: right
    assert result.task_il_accuracy == pytest.approx(100 * 7 / 8)
    assert result.images == 8
    assert result.per_task == {"one": 50.0, "two": 50.0, "three": 50.0}
    # a: image 0 says e; b: 1 of 1; c: 2 says c, 3 says e, 4 says a; d: 1 of 1; e: 6 says e, 7 says a
    assert result.per_class == {"a": 0.0, "b": 100.0, "c": pytest.approx(100 / 3), "d": 100.0, "e": 50.0}
    assert result.balanced_accuracy == pytest.approx((0 + 100 + 100 / 3 + 100 + 50) / 5)
    assert result.record()["per_class"] == result.per_class


def test_final_accuracy_counts_images_not_tasks() -> None:
    """One: 2 of 2; two: 1 of 4; three: 0 of 2."""
    result = evaluate(answering([[0], [1], [2], [0], [0], [0], [0], [0]]), tasks())
    assert result.accuracy_matrix == ((100.0, 25.0, 0.0),)
    assert result.final_accuracy == 37.5


def test_without_a_history_nothing_is_said_of_it() -> None:
    for result in (evaluate(answering(LAST), tasks()), evaluate(last(), tasks(), history=False)):
        assert result.accuracy_matrix == ((50.0, 50.0, 50.0),)
        assert result.final_forgetting is None
        assert result.average_incremental_accuracy is None
        assert result.final_accuracy == 50.0


def test_progress_counts_the_models() -> None:
    told: list[tuple[int, int]] = []
    evaluate(last(), tasks(), progress=lambda phase, done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_forgetting_by_hand() -> None:
    assert forgetting([[90.0]]) == 0.0
    assert forgetting([[90.0], [70.0, 80.0]]) == 20.0
    assert forgetting([[60.0], [90.0, 80.0], [85.0, 50.0, 99.0]]) == pytest.approx((5 + 30) / 2)
    assert forgetting([[60.0], [70.0, 80.0]]) == 0.0  # what got better was not forgotten


@given(st.lists(st.lists(st.floats(0, 100), min_size=5, max_size=5), min_size=5, max_size=5))
def test_forgetting_is_its_definition(square: list[list[float]]) -> None:
    """Mean over j < T of max_i a[i][j] - a[T][j], over the i that know task j."""
    matrix = [row[: i + 1] for i, row in enumerate(square)]
    drops = [max(square[i][j] for i in range(j, 5)) - square[4][j] for j in range(4)]
    assert forgetting(matrix) == pytest.approx(sum(drops) / 4)


def test_target_and_control() -> None:
    assert target_and_control(answering(LAST), tasks(), "three") == (50.0, pytest.approx(100 * 3 / 6))
    assert target_and_control(answering(SECOND, 2), tasks(), "three") == (None, 50.0)
    assert target_and_control(answering(FIRST, 1), tasks(), "one") == (100.0, None)


def test_the_stream_must_hold_the_models_tasks() -> None:
    model = answering(LAST)
    with pytest.raises(InputError, match="task 'three' is not in stream arrays, which has one, two"):
        evaluate(model, tasks().subset(["one", "two"]))
    other: Mapping[str, Sequence[str]] = {**CLASSES, "two": ("d", "c")}
    with pytest.raises(InputError, match="task 'two' was learned with classes d, c; in stream arrays it has c, d"):
        matching_tasks(other, tasks())


def test_tasks_are_found_by_name_in_any_order() -> None:
    shuffled = tasks().subset(["three", "one", "two"])
    assert evaluate(last(), shuffled) == evaluate(last(), tasks())


def test_a_pools_own_models_are_evaluated(pool: Pool) -> None:
    """The last row is the per-task accuracy of the logits; the first that of the first module alone."""
    tested, model = stream(), pool.mean()
    result = evaluate(model, tested)
    hits, first = [], 0
    for task in tested:
        logits = model.logits(task.test.tensor(GREY))
        hits.append((logits.argmax(1) == task.test.labels + first).float().mean().item() * 100)
        first += len(task.classes)
    assert result.accuracy_matrix[-1] == pytest.approx(tuple(hits))
    alone = pool.specialize([pool.tasks[0]]).logits(tested[0].test.tensor(GREY))
    expected = (alone.argmax(1) == tested[0].test.labels).float().mean().item() * 100
    assert result.accuracy_matrix[0] == pytest.approx((expected,))
    assert [len(row) for row in result.accuracy_matrix] == [1, 2, 3, 4]


def test_features_of_one_network_are_computed_once_and_logits_are_the_same(pool: Pool) -> None:
    """The mean twice, and the mean made again; a specialist with all heads or its own; the first module alone."""
    tested, answers, first = stream(test=90), Answers(), pool.tasks[0]  # 180 images a task: three batches, one short
    alone = pool.specialize([first])
    models = (pool.mean(), pool.mean(), alone, pool.specialize([first], all_classes=True), pool.unlearn("task02"))
    for model in models:
        for task in matching_tasks(model.classes, tested):
            assert torch.equal(answers(model, task), model.logits(task.test.tensor(GREY)))
    for model, again in ((models[1], 0), (models[3], 0), (models[4], 0), (pool.unlearn("task03"), 3 * 180)):
        tasks = matching_tasks(model.classes, tested)
        assert images_passed(model, lambda m=model, ts=tasks: [answers(m, task) for task in ts]) == again
    assert images_passed(models[0], lambda: [models[0].logits(task.test.tensor(GREY)) for task in tested]) == 4 * 180


def test_features_are_dropped_beyond_the_room_there_is(pool: Pool) -> None:
    tested, model = stream(), pool.mean()
    one = 8 * 16 * 4  # images of a task, width, bytes
    for room, again in ((4 * one, 0), (one, 8 * 4)):
        answers = Answers(room)
        for task in tested:
            answers(model, task)
        assert len(answers._features) == room // one
        assert images_passed(model, lambda a=answers: [a(model, task) for task in tested]) == again


def test_rows_are_kept_as_they_are_known(pool: Pool, tmp_path: Path) -> None:
    """Stopped in the middle, nothing is measured twice; asked again, nothing at all; of other files, all anew."""
    path, tested, model = tmp_path / "new" / "kept.json", stream(), pool.mean()
    whole = evaluate(model, tested)

    def stopped(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tested, progress=stopped, keep=Kept(path, pool, tested))
    assert len(json.loads(path.read_text())["rows"]) == 2
    measured = list[str]()

    def watched(keep: Kept) -> Keep:
        return lambda name, measure: keep(name, lambda: (measured.append(name), measure())[1])

    assert evaluate(model, tested, keep=watched(Kept(path, pool, tested))) == whole
    assert measured == ["after 3 of 4 tasks", "after 4 of 4 tasks"]
    assert evaluate(model, tested, keep=watched(Kept(path, pool, tested))) == whole
    assert len(measured) == 2
    evaluate(model, stream(seed=1), keep=watched(Kept(path, pool, stream(seed=1))))
    assert len(measured) == 6
    path.write_text("{")
    evaluate(model, tested, keep=watched(Kept(path, pool, tested)))
    assert len(measured) == 10


def test_an_unknown_change_of_a_recorded_stream_is_refused() -> None:
    record = TaskStream.load("sketches", max_per_class=4).source()
    changes = [{"subset": ["food", "animals"]}, {"validation": {"fraction": 0.5, "seed": 0}}, {"joined": "both"}]
    made = reloaded({**record, "changes": changes})
    assert [(task.name, len(task.classes), len(task.test)) for task in made] == [("both", 20, 40)]
    for change in ({"mirrored": True}, {"subset": ["food"], "mirrored": True}):
        with pytest.raises(InputError, match=r"sketches.*'mirrored': expected some of .*subset.*--data"):
            reloaded({**record, "changes": [change]})


def test_a_stream_made_in_memory_cannot_be_loaded_again(pool: Pool) -> None:
    with pytest.raises(InputError, match="task 'task01' was learned from arrays in memory"):
        recorded_stream(pool)
