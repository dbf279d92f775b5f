"""What a run will cost: the counts are those of the run, the times and sizes near them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cases import GREY, QUICK, backbone, stream
from intarsia import IEL, ITA, InputError, LoRA, Pool, TaskStream, learn
from intarsia.study.estimate import estimate
from intarsia.training.fine_tuning import Configuration

SECONDS = {
    **dict.fromkeys(("features", "statistics", "heads", "training", "drift", "regularizer"), 0.0),
    "fisher": 60.0,
}


def size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("regularizer", [ITA(0.5), IEL(0.5)], ids=["ita", "iel"])
@pytest.mark.parametrize("keep", [False, True])
def test_what_is_counted_is_what_a_run_leaves(tmp_path: Path, regularizer: ITA | IEL, keep: bool) -> None:
    told: list[str] = []
    tasks = stream(3, classes=2, train=20)
    cost = estimate(
        backbone(),
        tasks,
        Configuration(LoRA(2), regularizer, QUICK),
        keep_fishers=keep,
        progress=lambda phase, done, total: told.append(phase),
    )
    assert (cost.tasks, cost.classes, cost.images) == (3, 6, 120)
    assert cost.steps == QUICK.epochs * 3 * -(-40 // QUICK.batch_size)
    learn(backbone(), tasks, out=tmp_path, adapter=LoRA(2), regularizer=regularizer, training=QUICK, keep_fishers=keep)
    assert cost.disk_mib * 2**20 == pytest.approx(size(tmp_path), rel=0.01)
    assert "task01: training" in told
    assert cost.set_up_minutes > 0
    assert cost.training_minutes > 0
    assert cost.memory_mib > 50


def test_images_are_read_only_as_far_as_they_are_timed(tmp_path: Path) -> None:
    for side, count in (("train", 40), ("test", 1)):
        for kind in ("a", "b"):
            (tmp_path / side / kind).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), i).save(tmp_path / side / kind / f"{i:02}.png")
    (tmp_path / "train" / "a" / "39.png").write_bytes(b"not an image")
    folder = TaskStream.load(f"folder:{tmp_path}")
    cost = estimate(backbone(), folder, Configuration(LoRA(2), ITA(0.5), QUICK))
    assert cost.images == 80
    with pytest.raises(InputError, match="39"):
        folder.decode(GREY)


def test_more_images_cost_more() -> None:
    few, many = (estimate(backbone(), stream(2, train=n), Configuration(LoRA(2), ITA(0.5), QUICK)) for n in (20, 400))
    assert many.training_minutes > few.training_minutes
    assert many.record()["images"] == 20 * few.record()["images"]


def test_a_curvature_of_few_images_costs_no_more_for_more_images() -> None:
    """Every few images' Fisher is said to take a minute."""

    def cost(n: int, **change: Any) -> float:
        training = replace(QUICK, **change)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pool, "logged", lambda self: {"task01": {"seconds": SECONDS}})
            return estimate(backbone(), stream(2, train=n), Configuration(LoRA(2), ITA(0.5), training)).set_up_minutes

    assert cost(160) == pytest.approx(10 * cost(16))
    few = {"curvature": "kfac", "curvature_images": 8}
    assert cost(160, **few) == pytest.approx(cost(16, **few))
    assert cost(16, curvature_of="reference") == pytest.approx(cost(16) / 2)  # of the first of two tasks


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("split", [[3], [1, 1, 1, 1], [3, 1, 2], [1, 3, 1, 2]])
def test_disk_is_counted_whatever_the_tasks_classes(tmp_path: Path, split: list[int], scale: float) -> None:
    classes = iter(f"class{i}" for i in range(sum(split)))
    tasks = {f"t{place}": [next(classes) for _ in range(count)] for place, count in enumerate(split)}
    whole = stream(1, classes=sum(split))
    of = TaskStream.from_arrays(
        (whole[0].train.tensor(GREY), whole[0].train.labels),
        (whole[0].test.tensor(GREY), whole[0].test.labels),
        whole[0].classes,
        split=tasks,
    )
    training = replace(QUICK, mean_scale=scale)
    cost = estimate(backbone(), of, Configuration(LoRA(2), ITA(0.5), training))
    learn(backbone(), of, out=tmp_path, adapter=LoRA(2), regularizer=ITA(0.5), training=training)
    assert cost.disk_mib * 2**20 == pytest.approx(size(tmp_path), rel=0.03 if scale > 1 else 0.01)  # names
