"""Pools on disk: what they hold, that they travel, and that a refusal changes no byte."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cases import GREY, QUICK, backbone, contents, edit, module, same, stream, tiny_vit
from intarsia import IEL, ITA, Backbone, Full, InputError, LoRA, Pool, TaskStream, TaskVector, learn
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.curvature.protocol import Curvature
from intarsia.store.index import FORMAT


def unlike(name: str) -> TaskStream:
    """A stream of one task of that name, with classes the pool has not."""
    images, labels = torch.zeros(6, 8, 8, dtype=torch.uint8), torch.arange(6) % 2
    return TaskStream.from_arrays((images, labels), (images, labels), ["x", "y"], split={name: ["x", "y"]})


def test_holds_the_files_it_says_and_their_hashes(learned: Path) -> None:
    files = contents(learned, without={"pool.json", "log.jsonl", "fisher-3.safetensors", "reference-3.safetensors"})
    record = json.loads((learned / "pool.json").read_text())
    assert record["files"] == {
        name: {"sha256": h, "size": (learned / name).stat().st_size} for name, h in files.items()
    }
    kept = (
        "prototypes.safetensors",
        "card.json",
        "drift.safetensors",
        "head.safetensors",
        "statistics.safetensors",
        "vector.safetensors",
    )
    modules = {f"modules/task0{t}/{name}" for t in (1, 2, 3, 4) for name in kept}
    assert files.keys() == modules | {"fisher-4.safetensors", "reference-4.safetensors"}
    assert record["tasks"] == ["task01", "task02", "task03", "task04"]
    assert len((learned / "log.jsonl").read_text().splitlines()) == 4


def test_a_moved_pool_predicts_the_same(learned: Path, copied: Path) -> None:
    images = stream()[0].test.tensor(GREY)
    here, there = (Pool.open(path, backbone()).mean().logits(images) for path in (learned, copied))
    assert torch.equal(here, there)


def test_reading_and_composing_change_no_byte(copied: Path) -> None:
    before = contents(copied)
    pool = Pool.open(copied, backbone())
    pool.mean()
    pool.unlearn("task02")
    pool.frozen()
    pool.total()
    pool.statistics()
    assert contents(copied) == before


def test_what_is_read_is_what_was_added(tmp_path: Path) -> None:
    theta0, adapter = backbone(), LoRA(2)
    pool = Pool.create(tmp_path / "pool", theta0, adapter, {"method": "ita"})
    made = module("birds", ["jay", "tit"], adapter, theta0, 1)
    fisher = DiagonalFisher({n: torch.rand_like(w) for n, w in theta0.trainable.items()}, 7)
    pool.add(made, fisher, made.reference, own_fisher=fisher)
    again = Pool.open(tmp_path / "pool", backbone())
    read = again.module("birds")
    assert read.card == made.card
    assert same(read.vector, made.vector)
    assert same(read.head.tensors(), made.head.tensors())
    assert same(read.reference.tensors(), made.reference.tensors())
    assert same(read.statistics.tensors(), made.statistics.tensors())
    for task in (None, "birds"):
        stored = again.fisher(task)
        assert stored is not None
        assert stored.count == 7
        assert same(stored.tensors(), fisher.tensors())
    assert again.adapter == adapter
    assert again.index.settings == {"method": "ita"}


def test_vectors_total_and_statistics_are_over_all_modules(pool: Pool) -> None:
    total, statistics = pool.total(), pool.statistics()
    assert total is not None
    expected: TaskVector = pool.vector("task01")
    for task in pool.tasks[1:]:
        expected = expected + pool.vector(task)
    assert same(total, expected)
    for task, own in zip(pool.tasks, statistics, strict=True):
        assert same(own.tensors(), pool.module(task).statistics.tensors())
    reference, fisher = pool.reference(), pool.fisher()
    assert reference is not None
    assert len(reference) == sum(map(len, statistics)) == 8
    assert fisher is not None
    assert fisher.count == sum(pool.card(t).images for t in pool.tasks) == 48
    assert pool.fisher("task01") is None  # kept on request only


@pytest.mark.parametrize(("regularizer", "ways"), [(ITA(), ["fisher", "statistics", "prototypes"]), (IEL(), None)])
def test_cards_say_what_influenced_a_module(regularizer: ITA | IEL, ways: list[str] | None, tmp_path: Path) -> None:
    pool = learn(backbone(), stream(3), adapter=LoRA(1), regularizer=regularizer, training=QUICK, out=tmp_path / "p")
    ways = ways or ["fisher", "statistics", "vectors", "prototypes"]
    assert pool.influenced_by("task01") == {"task02": ways, "task03": ways}
    assert pool.influenced_by("task03") == {}


def test_formats_before_and_after_are_refused_by_name(copied: Path) -> None:
    for found, said in ((FORMAT - 1, "learn it again"), (FORMAT + 1, "update intarsia"), ("6", "update intarsia")):
        edit(copied / "pool.json", lambda r, found=found: r.update(format=found))
        with pytest.raises(InputError, match=rf"pool format {found}, this version reads format {FORMAT}: {said}"):
            Pool.open(copied)


# Refusals


def test_no_pool_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a pool"):
        Pool.open(tmp_path)
    with pytest.raises(InputError, match="is not a pool"):
        learn(backbone(), stream(), out=tmp_path / "none", add=True)
    assert contents(tmp_path) == {}
    assert not (tmp_path / "none").exists()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "newer": lambda p: edit(p, lambda r: r.update(format=FORMAT + 1)),
    "no format": lambda p: edit(p, lambda r: r.pop("format")),
    "cut off": lambda p: p.write_text(p.read_text()[:100]),
    "empty": lambda p: p.write_text(""),
    "a list": lambda p: p.write_text("[]"),
    "a word": lambda p: p.write_text('"pool"'),
    "no tasks": lambda p: edit(p, lambda r: r.pop("tasks")),
    "a strange key": lambda p: edit(p, lambda r: r.update(colour="red")),
    "bytes": lambda p: p.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_newer_and_damaged_pools_are_refused(how: str, copied: Path) -> None:
    DAMAGE[how](copied / "pool.json")
    before = contents(copied)
    with pytest.raises(
        InputError,
        match=f"format {FORMAT + 1}.*update intarsia" if how == "newer" else "pool.json is missing or damaged",
    ):
        Pool.open(copied, backbone())
    with pytest.raises(InputError):
        learn(backbone(), unlike("new"), adapter=LoRA(2), training=QUICK, out=copied, add=True)
    with pytest.raises(InputError, match="already holds a pool"):
        learn(backbone(), unlike("new"), adapter=LoRA(2), training=QUICK, out=copied)
    assert contents(copied) == before


def test_another_backbone_is_refused_naming_both(copied: Path) -> None:
    ours, other, before = backbone(), backbone(seed=5), contents(copied)
    for act in (
        lambda: Pool.open(copied, other),
        lambda: learn(other, unlike("new"), adapter=LoRA(2), out=copied, add=True),
    ):
        with pytest.raises(InputError) as caught:
            act()
        for part in ("tiny0", ours.hash[:12], "tiny5", other.hash[:12]):
            assert part in str(caught.value)
    retargeted = Backbone(tiny_vit(), name="tiny0", preprocessing=GREY, targets=["*attn.qkv"])
    with pytest.raises(InputError, match="load it with the pool's targets"):
        Pool.open(copied, retargeted)
    assert contents(copied) == before


@pytest.mark.parametrize("adapter", [LoRA(3), Full()])
def test_another_adapter_is_refused(adapter: LoRA | Full, copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(InputError, match=r"LoRA\(rank=2.*use the pool's adapter"):
        learn(backbone(), unlike("new"), adapter=adapter, out=copied, add=True)
    assert contents(copied) == before


def test_a_known_task_is_refused(copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(InputError, match="task 'task02' is in the pool already"):
        learn(backbone(), unlike("task02"), adapter=LoRA(2), training=QUICK, out=copied, add=True)
    assert contents(copied) == before


def test_a_class_of_another_task_is_refused_before_any_task_is_learned(copied: Path) -> None:
    images, labels = torch.zeros(9, 8, 8, dtype=torch.uint8), torch.arange(9) % 3
    mixed = TaskStream.from_arrays(
        (images, labels), (images, labels), ["x", "y", "class5"], split={"fine": ["x"], "clash": ["y", "class5"]}
    )
    before = contents(copied)
    with pytest.raises(InputError, match="class 'class5' of task 'clash' is in the pool already, in task 'task03'"):
        learn(backbone(), mixed, adapter=LoRA(2), training=QUICK, out=copied, add=True)
    assert contents(copied) == before
    theta0 = backbone()
    pool = Pool.open(copied, theta0)
    fisher, reference = pool.fisher(), pool.reference()
    assert fisher is not None
    assert reference is not None
    for name, classes in (("task01", ["new"]), ("new", ["class0"])):
        with pytest.raises(InputError, match="in the pool already"):
            pool.add(module(name, classes, LoRA(2), theta0, 1), fisher, reference)
    assert contents(copied) == before


def test_a_folder_in_use_is_refused(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    before = contents(tmp_path)
    for out, message in (
        (copied, "already holds a pool"),
        (tmp_path / "notes", "not a pool"),
        (tmp_path / "file", "not a pool"),
    ):
        with pytest.raises(InputError, match=message):
            learn(backbone(), stream(2), training=QUICK, out=out)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_taken_and_nothing_is_written_before_the_first_module(tmp_path: Path) -> None:
    pool = Pool.create(tmp_path, backbone(), LoRA(2), {})
    assert contents(tmp_path) == {}
    assert pool.tasks == ()
    assert pool.fisher() is pool.reference() is pool.total() is None
    assert pool.statistics() == ()
    for act in (pool.mean, pool.frozen, lambda: pool.unlearn("a"), lambda: pool.specialize(["a"])):
        with pytest.raises(InputError, match="no module yet"):
            act()


def test_unknown_tasks_are_refused_by_name(pool: Pool) -> None:
    for act in (
        lambda: pool.card("boats"),
        lambda: pool.module("boats"),
        lambda: pool.unlearn("boats"),
        lambda: pool.specialize(["boats"]),
        lambda: pool.weighted({"boats": 1.0}),
    ):
        with pytest.raises(InputError, match="unknown task 'boats': the pool has task01, task02, task03, task04"):
            act()


def test_leftovers_of_a_run_that_died_are_no_hindrance(copied: Path, tmp_path: Path) -> None:
    """Folders that pool.json does not name are replaced, and what comes out has the same bytes as without them."""
    clean = Path(shutil.copytree(copied, tmp_path / "clean"))
    for leftover in (".new.new", "new"):
        (copied / "modules" / leftover).mkdir()
        (copied / "modules" / leftover / "vector.safetensors").write_text("half of it")
    for path in (copied, clean):
        learn(backbone(), unlike("new"), adapter=LoRA(2), training=QUICK, out=path, add=True)
    assert contents(copied, {"log.jsonl"}) == contents(clean, {"log.jsonl"})


def test_fishers_are_kept_on_request_and_add_up(tmp_path: Path) -> None:
    pool = learn(
        backbone(),
        stream(3),
        adapter=LoRA(1),
        training=replace(QUICK, fisher="exact"),
        out=tmp_path / "p",
        keep_fishers=True,
    )
    running = pool.fisher()
    own = [pool.fisher(t) for t in pool.tasks]
    assert running is not None
    total: Curvature | None = None
    for fisher in own:
        assert fisher is not None
        total = fisher if total is None else total + fisher
    assert total is not None
    assert total.count == running.count
    assert same(total.tensors(), running.tensors())


def test_a_pool_is_a_mapping_of_modules(pool: Pool, learned: Path) -> None:
    assert isinstance(pool, Mapping)
    assert list(pool) == list(pool.keys()) == list(pool.tasks)
    assert len(pool) == len(pool.items()) == 4
    assert "task02" in pool
    assert "boats" not in pool
    for task, found in pool.items():
        assert found.card.task == task
        assert same(found.vector, pool.module(task).vector)
    assert [m.card.task for m in pool.values()] == list(pool.tasks)
    assert pool.get("boats") is None
    with pytest.raises(InputError, match=r"unknown task 'task2': the pool has task01, .*; did you mean 'task02'\?"):
        pool["task2"]
    with pytest.raises(KeyError):
        pool["boats"]
    assert pool != Pool.open(learned, backbone())
    assert len({pool, pool}) == 1


def test_a_pool_shows_what_it_is(pool: Pool, copied: Path, tmp_path: Path) -> None:
    for shown in (repr(pool), pool._repr_html_()):
        for part in (str(pool.path), "tiny0", "ita of strength 0.1", "lora of rank 2", "task01", "2 classes"):
            assert part in shown, (part, shown)
    (copied / "modules" / "task02" / "card.json").write_text("{")
    assert "task02 (damaged)" in repr(Pool.open(copied))
    odd = Pool.create(tmp_path / "<script>alert(1)</script>", backbone(), LoRA(2), {"method": "<b>", "strength": 1})
    assert "0 tasks)" in repr(odd)
    assert "<script" not in odd._repr_html_()
    assert "<b>" not in odd._repr_html_()
