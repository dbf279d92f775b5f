"""Specialization and unlearning, measured: which model answers in which row."""

from collections.abc import Callable
from dataclasses import replace

from test_evaluation import LAST, SECOND, answering, tasks

from cases import stream
from intarsia import ComposedModel, Pool
from intarsia.evaluation.editing import Editable, edit_each
from intarsia.evaluation.metrics import target_and_control


def test_edits_are_measured_on_their_target_and_the_others() -> None:
    """The mean once; every edit, made when its turn comes; a target whose classes are gone has no accuracy."""
    told, made = list[tuple[int, int]](), list[str]()

    def edited(target: str) -> dict[str, Callable[[], ComposedModel]]:
        def last() -> ComposedModel:
            made.append(target)
            return answering(LAST)

        return {"as it was": last, "drop three": lambda: answering(SECOND, 2)}

    modules = Editable(answering(LAST), edited)
    rows = edit_each(modules, tasks(), ["three", "one"], progress=lambda phase, done, total: told.append((done, total)))
    one = target_and_control(answering(LAST), tasks(), "one")
    assert [tuple(row.values()) for row in rows] == [
        ("three", "mean", 50.0, 50.0),
        ("one", "mean", *one),
        ("three", "as it was", 50.0, 50.0),
        ("three", "drop three", None, 50.0),
        ("one", "as it was", *one),
        ("one", "drop three", *target_and_control(answering(SECOND, 2), tasks(), "one")),
    ]
    assert made == ["three", "one"]
    assert told == [(i, 4) for i in (1, 2, 3, 4)]


def test_a_pool_is_edited_as_its_own_verbs_do(pool: Pool) -> None:
    models = {
        "mean": lambda task: pool.mean(),
        "only it, all classes": lambda task: pool.specialize([task], all_classes=True),
        "negate 0.5": lambda task: pool.unlearn(task, mode="negate", scale=0.5),
        "drop": pool.unlearn,
    }
    rows = edit_each(Editable.of_pool(pool, pool.mean()), stream(), ["task02"])
    assert [row["how"] for row in rows] == list(models)
    for row in rows:
        expected = target_and_control(models[row["how"]]("task02"), stream(), "task02")
        assert (row["target_accuracy"], row["control_accuracy"]) == expected
    assert rows[-1]["target_accuracy"] is None


def test_the_only_module_cannot_be_dropped(pool: Pool) -> None:
    alone = Pool(pool.path, replace(pool.index, tasks=pool.tasks[:1]), pool.backbone)
    assert "drop" not in Editable.of_pool(alone, alone.mean()).edits("task01")
