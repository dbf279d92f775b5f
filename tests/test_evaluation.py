"""Measures against cases worked out by hand."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import GREY, stream
from intarsia import ComposedModel, InputError, Pool, TaskStream, evaluate
from intarsia.evaluation.metrics import forgetting, matching_tasks, recorded_stream, target_and_control
from intarsia.heads.head import Head

CLASSES = {"one": ("a", "b"), "two": ("c", "d"), "three": ("e",)}


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


def test_a_stream_made_in_memory_cannot_be_loaded_again(pool: Pool) -> None:
    with pytest.raises(InputError, match="task 'task01' was learned from arrays in memory"):
        recorded_stream(pool)
