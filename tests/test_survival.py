"""A pool that survives: whatever stops a writer, what was learned is there, and the run can be gone on with."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run

from cases import QUICK, backbone, contents, edit, module, permissions_hold, same, settings, stream
from hostile import FORGED, HARM, LIES, changed, flip, rehashed
from intarsia import IEL, ITA, Full, InputError, LoRA, Pool, learn
from intarsia.cli.main import main
from intarsia.cli.manage import Ls
from intarsia.cli.options import parse_weights
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.data.splits import read_split
from intarsia.merging.recipe import mean
from intarsia.store import files as storage
from intarsia.store.index import Index
from intarsia.store.lock import one_writer
from intarsia.store.verify import repair, unnamed, verify
from intarsia.training.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

TASKS = 3
OPTIONS: dict[str, Any] = {"adapter": LoRA(1), "regularizer": ITA(0.1), "training": QUICK}
APART = {"log.jsonl"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool whose run was never stopped."""
    return learn(backbone(), stream(TASKS), out=tmp_path_factory.mktemp("whole") / "p", **OPTIONS).path


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None], half: bool = False) -> Iterator[None]:
    """Call ``before`` ahead of every opening, writing, flushing, renaming and removing of a file.

    With ``half``, a write comes in two, and is told of twice.
    """
    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "replace", "write", "rename", "unlink"):
            plain = getattr(os, name)

            def told(*args: Any, name: str = name, plain: Callable[..., Any] = plain, **kwargs: Any) -> Any:
                before(name)
                if name == "write" and half and len(args[1]) > 1:
                    return plain(args[0], args[1][: len(args[1]) // 2])
                return plain(*args, **kwargs)

            patch.setattr(os, name, told)
        yield


def intact(folder: Path, tasks: tuple[str, ...]) -> None:
    """What is in a folder is a pool of the first tasks, or none yet."""
    if (folder / "pool.json").exists():
        pool = Pool.open(folder, backbone())
        assert pool.tasks == tasks[: len(pool.tasks)]
        assert verify(pool) == []
        pool.mean()


def test_killed_at_any_step_of_any_write_a_run_is_intact_and_ends_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot of the folder is what a kill at that moment leaves."""
    out, tasks, taken, busy = tmp_path / "p", Pool.open(whole).tasks, list[Path](), list[str]()

    def snapshot(step: str) -> None:
        if out.exists() and not busy:
            busy.append(step)
            taken.append(Path(shutil.copytree(out, tmp_path / f"{len(taken):04d}-{step}")))
            busy.clear()

    with watched(monkeypatch, snapshot, half=True):
        learn(backbone(), stream(TASKS), out=out, **OPTIONS)
    assert contents(out, APART) == contents(whole, APART)
    assert len(taken) > 200
    last: dict[str, str] = {}
    for left in taken:
        if (now := contents(left, APART)) != last:  # most steps change no file
            intact(left, tasks)
        last = now
    begun = [left for left in taken if Checkpoint.of(left).exists or (left / "pool.json").exists()]
    assert len(begun) > 200
    for left in [*begun[::40], *begun[-8:]]:  # the last are of a run that has all its modules and is cleaning up
        learn(backbone(), stream(TASKS), out=left, resume=True, **OPTIONS)
        assert contents(left, APART) == contents(whole, APART)


def test_the_log_of_a_task_that_was_stopped_has_the_time_of_all_its_epochs(tmp_path: Path) -> None:
    out, options = tmp_path / "p", {**OPTIONS, "training": replace(QUICK, epochs=3)}

    def slow_then_stop(what: str, done: int, _: int) -> None:
        if what.endswith("training") and done == 1:
            time.sleep(0.5)  # of the second epoch
        elif what.endswith("training"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(backbone(), stream(1), out=out, progress=slow_then_stop, **options)
    learn(backbone(), stream(1), out=out, resume=True, **options)
    (line,) = (out / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["seconds"]["training"] > 0.5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_write_that_fails_is_named_and_the_run_goes_on_when_there_is_room(
    code: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, steps = Pool.open(whole).tasks, list[str]()
    with watched(monkeypatch, steps.append):
        learn(backbone(), stream(TASKS), out=tmp_path / "counted", **OPTIONS)
    writes = [number for number, step in enumerate(steps) if step != "unlink"]
    for number in writes[:: 19 if code == errno.ENOSPC else 61]:
        out, left = tmp_path / f"{number}", [number]

        def fail(step: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(code, os.strerror(code))

        try:
            with watched(monkeypatch, fail):
                learn(backbone(), stream(TASKS), out=out, **OPTIONS)
        except InputError as error:
            assert "cannot be written" in str(error)
            assert os.strerror(code) in str(error)
        if out.exists():
            intact(out, tasks)
        again = Checkpoint.of(out).exists or (out / "pool.json").exists()
        learn(backbone(), stream(TASKS), out=out, resume=again, **OPTIONS)
        assert contents(out, APART) == contents(whole, APART)


def stopped(out: Path, at: tuple[str, str, int], **options: Any) -> None:
    """A run that is interrupted when a task's phase has done so many units."""

    def interrupt(phase: str, done: int, total: int) -> None:
        task, _, phase = phase.rpartition(": ")
        if (task, phase, done) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(backbone(), stream(TASKS), out=out, progress=interrupt, **options)


LONGER = replace(QUICK, epochs=4)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": LoRA(2), "regularizer": ITA(0.1), "training": LONGER},
    "full iel": {"adapter": Full(), "regularizer": IEL(0.1), "training": LONGER},
    "explicit": {"adapter": LoRA(2), "regularizer": ITA(0.1), "training": replace(LONGER, step="decoupled")},
    "others": {"adapter": LoRA(2), "regularizer": ITA(0.1), "training": replace(LONGER, fisher_over="others")},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [("task02", "training", 1), ("task02", "training", 4), ("task03", "training", 2)])
def test_a_run_goes_on_from_its_last_epoch_and_ends_bit_equal(
    kind: str, at: tuple[str, str, int], tmp_path: Path
) -> None:
    options = KINDS[kind]
    learn(backbone(), stream(TASKS), out=tmp_path / "whole", **options)
    stopped(tmp_path / "p", at, **options)
    trained: list[tuple[str, int]] = []

    def watch(phase: str, done: int, total: int) -> None:
        task, _, phase = phase.rpartition(": ")
        if phase == "training":
            trained.append((task, done))

    learn(backbone(), stream(TASKS), out=tmp_path / "p", resume=True, progress=watch, **options)
    assert contents(tmp_path / "p", APART) == contents(tmp_path / "whole", APART)
    assert not (tmp_path / "p" / ".run").exists()
    left = [(task, epoch) for task in ("task02", "task03") for epoch in (1, 2, 3, 4)]
    assert trained == left[left.index((at[0], at[2])) + 1 :]


def test_a_run_that_adds_with_every_fisher_first_goes_on_bit_equal(tmp_path: Path) -> None:
    options = KINDS["others"]
    for out in ("whole", "p"):
        learn(backbone(), stream(TASKS).subset([0]), out=tmp_path / out, **options)
    learn(backbone(), stream(TASKS).subset([1, 2]), out=tmp_path / "whole", add=True, **options)

    def interrupt(phase: str, done: int, total: int) -> None:
        task, _, phase = phase.rpartition(": ")
        if (task, phase, done) == ("task03", "training", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(backbone(), stream(TASKS).subset([1, 2]), out=tmp_path / "p", add=True, progress=interrupt, **options)
    learn(backbone(), stream(TASKS).subset([1, 2]), out=tmp_path / "p", resume=True, **options)
    assert contents(tmp_path / "p", APART) == contents(tmp_path / "whole", APART)


def test_without_checkpoints_a_run_goes_on_from_its_last_task(whole: Path, tmp_path: Path) -> None:
    stopped(tmp_path / "p", ("task02", "training", 1), checkpoints=False, **OPTIONS)
    assert not (tmp_path / "p" / ".run" / "epoch.safetensors").exists()
    learn(backbone(), stream(TASKS), out=tmp_path / "p", resume=True, **OPTIONS)
    assert contents(tmp_path / "p", APART) == contents(whole, APART)


def test_a_finished_run_is_left_as_it_is_and_none_cannot_be_resumed(whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    assert learn(backbone(), stream(TASKS), out=whole, resume=True, **OPTIONS).tasks == Pool.open(whole).tasks
    assert contents(whole) == before
    with pytest.raises(InputError, match="no unfinished run"):
        learn(backbone(), stream(TASKS), out=tmp_path / "none", resume=True, **OPTIONS)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": replace(QUICK, lr=3e-2)}, "settings: lr 0.01, not 0.03"),
        ({"regularizer": ITA(0.2)}, "settings: strength 0.1, not 0.2"),
        ({"keep_fishers": True}, "keep_fishers"),
    ],
)
def test_another_run_is_not_resumed(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    stopped(tmp_path / "p", ("task02", "training", 1), **OPTIONS)
    before = contents(tmp_path / "p")
    with pytest.raises(InputError, match=said):
        learn(backbone(), stream(TASKS), out=tmp_path / "p", resume=True, **{**OPTIONS, **change})
    with pytest.raises(InputError, match="stream"):
        learn(backbone(), stream(TASKS, train=7), out=tmp_path / "p", resume=True, **OPTIONS)
    with pytest.raises(InputError, match="has a run stopped in task 'task02' after epoch 1"):
        learn(backbone(), stream(TASKS), out=tmp_path / "p", add=True, **OPTIONS)
    assert contents(tmp_path / "p") == before


def test_a_damaged_checkpoint_is_named_and_without_it_the_task_begins_anew(whole: Path, tmp_path: Path) -> None:
    stopped(tmp_path / "p", ("task02", "training", 1), **OPTIONS)
    path = tmp_path / "p" / ".run" / "epoch.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"epoch.safetensors is damaged .*remove it, and task 'task02' begins anew"):
        learn(backbone(), stream(TASKS), out=tmp_path / "p", resume=True, **OPTIONS)
    path.unlink()
    learn(backbone(), stream(TASKS), out=tmp_path / "p", resume=True, **OPTIONS)
    assert contents(tmp_path / "p", APART) == contents(whole, APART)


# The command line, as processes

RUN = ["--data", "sketches", "--only", "animals", "food", "--max-per-class", "2", "--epochs", "5", "--run.no-evaluate"]


def process(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "intarsia", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_stopped_command_says_what_is_saved_and_goes_on_bit_equal(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "p"
    main(["learn", *RUN, "--out", str(whole)])
    epoch = out / ".run" / "epoch.safetensors"
    for how, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        before = epoch.stat().st_mtime_ns if epoch.exists() else 0
        with process("learn", *(["--resume"] if before else RUN), "--run.no-evaluate", "--out", str(out)) as running:
            until(lambda before=before: epoch.exists() and epoch.stat().st_mtime_ns != before)
            running.send_signal(how)
            _, said = running.communicate(timeout=60)
        assert running.returncode == code
        if how is not signal.SIGKILL:
            assert f"tasks are in {out}; the run was stopped in task" in said
            assert f"`intarsia learn --resume --out {out}`" in said
            assert "Traceback" not in said
    main(["learn", "--resume", "--run.no-evaluate", "--out", str(out)])
    assert contents(out, APART) == contents(whole, APART)


# One writer

HOLD = """
import sys, time
from pathlib import Path
from intarsia.store.lock import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_told_who_holds_the_pool_and_a_dead_ones_lock_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "p"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        before = contents(out)
        with pytest.raises(InputError, match=rf"is being written by process {held.pid} on .*, since 20"):
            learn(backbone(), stream(1), out=out, **OPTIONS)
        assert contents(out) == before
        held.kill()
    assert learn(backbone(), stream(1), out=out, **OPTIONS).tasks == ("task01",)
    assert not (out / ".run").exists()


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with one_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_who_opened_a_pool_reads_what_it_was_while_tasks_are_added(tmp_path: Path) -> None:
    out = tmp_path / "p"
    learn(backbone(), stream(TASKS).subset([0]), out=out, **OPTIONS)
    early = Pool.open(out, backbone())
    expected = early.mean().logits(stream(TASKS)[0].test.tensor(early.backbone.preprocessing))
    learn(backbone(), stream(TASKS).subset([1]), out=out, add=True, **OPTIONS)
    fisher = early.fisher()
    assert fisher is not None
    assert fisher.count == 12
    learn(backbone(), stream(TASKS).subset([2]), out=out, add=True, **OPTIONS)
    again = early.mean().logits(stream(TASKS)[0].test.tensor(early.backbone.preprocessing))
    assert torch.equal(again, expected)
    with pytest.raises(InputError, match=r"fisher-1.safetensors is gone: the pool has changed .* open it again"):
        early.fisher()


# Verify and repair


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("name", ["vector.safetensors", "card.json", "prototypes.safetensors"])
def test_verify_names_what_is_damaged_and_repair_drops_its_module(how: str, name: str, copied: Path) -> None:
    HARM[how](copied / "modules" / "task02" / name)
    pool = Pool.open(copied, backbone())
    damaged = verify(pool)
    assert [(d.file, d.task, d.lost) for d in damaged] == [
        (f"modules/task02/{name}", "task02", "the module of 'task02'")
    ]
    with pytest.raises(InputError, match=f"task02/{name} is missing or damaged"):
        pool.mean()
    repair(pool, damaged)
    mended = Pool.open(copied, backbone())
    assert mended.tasks == ("task01", "task03", "task04")
    assert verify(mended) == []
    assert unnamed(mended) == []
    assert not mended.prototypes_hold
    images = stream()[2].test.tensor(mended.backbone.preprocessing)
    assert mended.mean().logits(images).shape[1] == 6
    carried = mended.compose(mean(mended.tasks), heads="compensated")
    assert torch.equal(mended.mean().logits(images), carried.logits(images))
    reference = mended.reference()
    assert reference is not None
    assert len(reference) == 6


def test_a_repaired_pool_learns_on_and_says_what_was_lost(copied: Path) -> None:
    before = Pool.open(copied, backbone())
    old, aligned = before.fisher(), before.reference()
    flip(copied / "modules" / "task02" / "vector.safetensors")
    pool = Pool.open(copied, backbone())
    repair(pool, verify(pool))
    mended = Pool.open(copied, backbone())
    fisher, reference = mended.fisher(), mended.reference()
    assert old is not None and aligned is not None and fisher is not None and reference is not None
    assert same(fisher.tensors(), old.tensors())
    assert torch.equal(reference.weight, torch.cat([aligned.weight[:2], aligned.weight[4:]]))
    new = stream(5).subset(["task05"])
    grown = learn(backbone(), new, out=copied, add=True, adapter=LoRA(2), regularizer=ITA(0.1), training=QUICK)
    assert grown.tasks == ("task01", "task03", "task04", "task05")
    assert grown.card("task05").influenced_by.fisher == ("task02", "task01", "task03", "task04")
    assert verify(Pool.open(copied)) == []


def test_the_last_module_of_a_pool_is_dropped_without_harm_to_the_others(copied: Path) -> None:
    flip(copied / "modules" / "task04" / "head.safetensors")
    pool = Pool.open(copied, backbone())
    repair(pool, verify(pool))
    assert Pool.open(copied, backbone()).prototypes_hold


def test_what_belongs_to_no_module_is_not_repaired_by_dropping_one(copied: Path) -> None:
    for name, lost in (
        ("fisher-4.safetensors", "learning further tasks"),
        ("reference-4.safetensors", "initial heads"),
    ):
        other = Path(shutil.copytree(copied, copied.parent / name))
        flip(other / name)
        before, pool = contents(other), Pool.open(other, backbone())
        (damage,) = verify(pool)
        assert lost in damage.lost
        assert damage.task is None
        pool.mean()  # which needs neither
        with pytest.raises(InputError, match="part of no module"):
            repair(pool, [damage])
        assert contents(other) == before
    for path in (copied / "modules").iterdir():
        flip(path / "vector.safetensors")
    pool = Pool.open(copied, backbone())
    with pytest.raises(InputError, match="nothing would be left"):
        repair(pool, verify(pool))


def test_verify_as_a_command(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def verified(*flags: str) -> tuple[Any, Any, str]:
        code = 0
        try:
            main(["verify", str(copied), "--json", *flags])
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, json.loads(told.out), told.err

    modules = [f"task0{i}" for i in (1, 2, 3, 4)]
    assert verified()[:2] == (0, {"files": 26, "damaged": [], "modules": modules, "unnamed": []})
    flip(copied / "modules" / "task03" / "drift.safetensors")
    code, found, said = verified()
    assert code == 2
    assert [d["file"] for d in found["damaged"]] == ["modules/task03/drift.safetensors"]
    assert "1 of 26 files are damaged" in said
    assert "--repair drops the module of 'task03'" in said
    assert run("verify", copied).returncode == 2
    code, found, _ = verified("--repair")
    assert code == 0
    assert found["modules"] == ["task01", "task02", "task04"]
    assert verified()[0] == 0


# Hostile files


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(lie: str, copied: Path) -> None:
    edit(copied / "pool.json", LIES[lie])
    with pytest.raises(InputError, match=r"pool\.json"):
        Pool.open(copied, backbone())


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": 5, "format": 5}', '{"format": NaN}', "1" * 10_000, "\x00"])
def test_json_that_is_deep_doubled_or_no_number_is_refused(text: str, copied: Path) -> None:
    (copied / "pool.json").write_text(text)
    with pytest.raises(InputError, match=r"pool\.json is missing or damaged"):
        Pool.open(copied)


def test_json_that_is_enormous_is_not_read(copied: Path) -> None:
    with (copied / "pool.json").open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no room
    with pytest.raises(InputError, match=r"1,000,000,000,000 bytes, expected at most"):
        Pool.open(copied)
    with (copied / "split.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="1,000,000,000,000 bytes"):
        read_split(copied / "split.json")


def test_a_file_is_hashed_once_while_it_stands_as_it_was(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size, time of change and inode; to ``verify``, that is no proof."""
    check, hashed = storage.Seen.check, list[int]()

    def counted(seen: storage.Seen, data: bytes) -> None:
        hashed.append(len(data))
        check(seen, data)

    monkeypatch.setattr(storage.Seen, "check", counted)
    pool = Pool.open(copied, backbone())
    first = pool.mean()
    once = len(hashed)
    assert once == 6 * len(pool.tasks)  # every file of every module, cards too
    assert same(pool.mean().state_dict(), first.state_dict())
    assert len(hashed) == once
    path = copied / "modules" / "task01" / "vector.safetensors"
    there, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert [damage.file for damage in verify(pool)] == ["modules/task01/vector.safetensors"]
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns + 1))
    with pytest.raises(InputError, match="its bytes have changed"):
        pool.mean()


def test_a_link_out_of_the_pool_is_not_followed(copied: Path, tmp_path: Path) -> None:
    vector = copied / "modules" / "task01" / "vector.safetensors"
    vector.rename(tmp_path / "elsewhere")
    vector.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"vector.safetensors leads out of the pool, to .*elsewhere"):
        Pool.open(copied, backbone()).module("task01")


@pytest.mark.parametrize("how", FORGED)
def test_tensors_that_lie_are_refused_by_name_though_their_hash_is_right(how: str, copied: Path) -> None:
    name, make = FORGED[how]
    path = f"modules/task01/{name}.safetensors"
    rehashed(copied, path, make(copied / path))
    with pytest.raises(InputError, match=r"task01"):
        Pool.open(copied, backbone()).module("task01")
    assert [d.task for d in verify(Pool.open(copied, backbone()))] == ["task01"]


def test_parts_of_other_shapes_or_weights_are_refused_when_they_are_merged(copied: Path) -> None:
    path = "modules/task01/vector.safetensors"
    for change, said in (
        (lambda t: t.pop("blocks.0.attn.proj.weight.B"), "blocks.0.attn.proj.weight"),
        (lambda t: t.update({"blocks.0.attn.proj.weight.B": torch.zeros(1, 2)}), "blocks.0.attn.proj.weight"),
    ):
        other = Path(shutil.copytree(copied, copied.parent / f"other{len(list(copied.parent.iterdir()))}"))
        rehashed(other, path, changed(other / path, change))
        with pytest.raises(InputError, match=said):
            Pool.open(other, backbone()).mean()


def test_numbers_are_finite_though_their_sum_is_not() -> None:
    large = torch.full((4,), 3e38)
    assert torch.equal(storage.parse_tensors(safetensors.torch.save({"a": large}))["a"], large)


@given(st.binary(max_size=400))
def test_any_bytes_are_tensors_or_refused(data: bytes) -> None:
    with suppress(storage.SafetensorError, ValueError):
        storage.parse_tensors(data)


@given(st.data())
def test_a_changed_index_is_read_or_refused(learned: Path, data: st.DataObject) -> None:
    text = bytearray((learned / "pool.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(InputError, ValueError, KeyError, TypeError, AttributeError):
        record = storage.parse_json(bytes(text))
        Index.from_record({key: value for key, value in record.items() if key != "format"}).check_names()


@given(st.text(max_size=40))
def test_any_weights_are_read_or_refused(text: str) -> None:
    try:
        assert parse_weights([text])
    except InputError as error:
        assert repr(text) in str(error)


# Limits


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="permissions of Linux")
def test_a_pool_with_no_permission_to_write_is_as_it_was(copied: Path) -> None:
    copied.chmod(0o500)
    before = contents(copied)
    with permissions_hold(), pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        learn(backbone(), stream(5).subset(["task05"]), out=copied, add=True, **{**OPTIONS, "adapter": LoRA(2)})
    assert contents(copied) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_a_file_larger_than_the_system_allows_is_an_error_and_the_pool_is_as_it_was(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); sys.argv[0] = 'intarsia';"
        "from intarsia.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "learn", *RUN, "--out", str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be written (File too large)" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "p" / "pool.json").exists()


@pytest.mark.parametrize("how", [lambda: torch.empty(2**50, dtype=torch.uint8), lambda: bytearray(2**60)])
def test_no_memory_is_an_error_in_words(
    how: Callable[[], object], learned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Ls, "run", lambda self: how())
    with pytest.raises(SystemExit) as stop:
        main(["ls", str(learned)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("intarsia: out of memory")


def test_a_module_that_cannot_be_written_whole_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theta0, adapter = backbone(), LoRA(2)
    pool = Pool.create(tmp_path / "pool", theta0, adapter, {"method": "ita"})
    made = module("birds", ["jay", "tit"], adapter, theta0, 1)
    fisher = DiagonalFisher({n: torch.rand_like(w) for n, w in theta0.trainable.items()}, 7)
    with monkeypatch.context() as patch:
        patch.setattr(Index, "write", lambda self, folder: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(InputError, match="cannot be written"):
            pool.add(made, fisher, made.reference)
    assert contents(tmp_path / "pool") == {}
    assert pool.tasks == ()
    pool.add(made, fisher, made.reference)
    assert Pool.open(tmp_path / "pool", backbone()).tasks == ("birds",)


def test_training_that_is_not_asked_for_checkpoints_has_none() -> None:
    assert "checkpoint" not in settings().record()
