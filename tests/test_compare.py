"""Methods side by side, as a user runs them: real processes, a table, and nothing made twice."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cells as runs_here
import pytest
from safetensors.torch import load_file, save_file
from test_cli import refused, result

from cases import backbone, contents, edit, permissions_hold, photographs, small_vit, stream
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.modules import results
from intarsia.data.files import FileHashes
from intarsia.errors import InputError
from intarsia.evaluation.metrics import target_and_control
from intarsia.machine import code
from intarsia.pool import Pool
from intarsia.store.index import Index
from intarsia.study.bench import Bench, made_with
from intarsia.study.choice import Source
from intarsia.study.compare import compare
from intarsia.study.folder import Folder
from intarsia.study.methods import METHODS, STANDARD
from intarsia.study.summary import cells, markdown, summary
from intarsia.training.recommended import SIZES, suited
from intarsia.training.settings import Settings

pytestmark = pytest.mark.slow

SMALL = ("--only", "animals", "vehicles", "--max-per-class", 4, "--epochs", 1, "--threads", 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made in this process."""
    runs_here.use(monkeypatch)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("compare") / "runs"
    return out, result("compare", "--methods", "ita", "finetune", "--seeds", 1, "--out", out, *SMALL)


def test_rows_are_the_methods_in_the_order_asked_for(compared: tuple[Path, Any]) -> None:
    out, found = compared
    assert [row["method"] for row in found["rows"]] == ["ita", "finetune"]
    ita, finetune = found["rows"]
    assert ita["final_accuracy"] > finetune["final_accuracy"]  # 4 images a class: frozen features win
    assert ita["seeds"] == 1
    assert ita["images_kept"] == finetune["images_kept"] == 0
    assert ita["memory_mib"] > 100
    assert json.loads((out / "comparison.json").read_text())["rows"] == found["rows"]
    lines = (out / "comparison.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines] == ["method", "---", "ita", "finetune"]


@pytest.mark.usefixtures("here")
def test_a_run_that_is_there_is_not_made_again(compared: tuple[Path, Any]) -> None:
    out, first = compared
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*-0.json")}
    arguments = ("compare", "--methods", "finetune", "frozen", "--out", out)
    again = result(*arguments, "--jobs", 2, *SMALL)
    assert again["rows"][0] == first["rows"][1]
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*-0.json")}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"frozen-0.json"}


def test_a_folder_is_of_one_comparison(compared: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Another stream, backbone or budget is refused by name with what to do, before anything is written."""
    out, _ = compared
    before = contents(out)
    for change, words in (
        (("--epochs", 2), "epochs"),
        (("--data", "sketches"), "sketches"),
        (("--batch-size", 7), "batch"),
    ):
        said = refused(capsys, "compare", "--methods", "frozen", "--out", out, *SMALL, *change)
        assert str(out) in said
        for part in (words, "--out", "--again"):
            assert part in said
    assert contents(out) == before


@pytest.mark.usefixtures("here")
def test_a_run_made_with_something_else_is_made_again_beside_the_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other images, other weights: one line says what; what was measured before is still there."""
    photos, out = photographs(tmp_path) / "photos", tmp_path / "out"
    arguments = (
        "compare",
        "--data",
        f"folder:{photos}",
        "--tasks",
        2,
        "--backbone",
        small_vit(tmp_path),
        "--threads",
        1,
    )
    arguments += ("--methods", "frozen", "--out", out)
    result(*arguments)
    record = json.loads((out / "frozen-0.json").read_text())
    assert record["code"]["sources"] == code()["sources"]
    assert record["made"]["images"].keys() == {"task01", "task02"}
    assert "/" not in json.dumps(record["made"])
    capsys.readouterr()

    def again(number: int, *words: str) -> None:
        made = (out / "frozen-0.json").read_text()
        result(*arguments)
        said = capsys.readouterr().err
        assert all(word in said for word in ("frozen, seed 0", *words)), said
        assert len([line for line in said.splitlines() if "made again" in line]) == 1
        assert (out / "earlier" / str(number) / "frozen-0.json").read_text() == made

    (photos / "train" / "blue" / "0.png").unlink()
    again(1, "images", "task01")
    weights = load_file(tmp_path / "weights.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, tmp_path / "weights.safetensors")
    again(2, "weights")


def test_a_record_is_taken_only_if_all_that_decides_about_its_numbers_is_the_same(tmp_path: Path) -> None:
    told: list[str] = []
    folder, path = Folder(tmp_path, told.append), tmp_path / "ita-0.json"
    settings = {"bench": {}, "training": {"lr": 1.0}, "options": {"strength": 0.1}}
    theta0, tasks = backbone(), stream()
    made = made_with(Bench(threads=1), theta0, tasks, FileHashes())
    assert made == made_with(Bench(threads=1), backbone(), stream(), FileHashes())
    record = {"method": "ita", "seed": 0, "settings": settings, "made": made}

    folder.keep(record)
    assert folder.find("ita", 0, settings, made) == json.loads(path.read_text())
    assert folder.find("ita", 1, settings, made) is folder.find("iel", 0, settings, made) is None
    assert not told
    others = {
        "images": made_with(Bench(threads=1), theta0, stream(seed=1), FileHashes()),
        "weights": made_with(Bench(threads=1), backbone(1), tasks, FileHashes()),
        "machine": made_with(Bench(threads=2), theta0, tasks, FileHashes()),
        **{key: {**made, key: "other"} for key in ("code", "torch", "timm")},
    }
    for what, now in others.items():
        assert folder.find("ita", 0, settings, now) is None
        assert all(word in told[-1] for word in ("ita, seed 0", what, "made again", str(tmp_path / "earlier")))
    assert folder.find("ita", 0, {**settings, "options": {"strength": 0.2}}, made) is None
    assert all(word in told[-1] for word in ("strength", "0.1", "0.2"))
    edit(path, lambda record: record.pop("made"))  # by a version that did not note it
    assert folder.find("ita", 0, settings, made) is None
    assert len(told) == len(others) + 2


def test_files_are_hashed_once_and_again_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    files = FileHashes()
    first = files.of(path)
    known = FileHashes(json.loads(json.dumps(files.record())))
    path.chmod(0)
    with permissions_hold():
        assert known.of(path) == first  # not read
        with pytest.raises(InputError, match=r"a\.png cannot be read"):
            FileHashes().of(path)
    path.chmod(0o644)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 5))
    assert known.of(path) == FileHashes().of(path) != first


def test_again_sets_another_comparison_aside(tmp_path: Path) -> None:
    """What is not the comparison's stays where it is."""
    folder, other = Folder(tmp_path, lambda _: None), Bench(epochs=2)
    folder.claim(Bench(), again=False)
    folder.keep({"method": "ita-full", "seed": 11})
    (folder.make_room("ita-full", 12, {}, {}) / "modules").mkdir(parents=True)
    first = contents(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"epochs was 4, is 2.*--again"):
        folder.check(other, again=False)
    folder.check(other, again=True)
    folder.claim(other, again=True)
    assert contents(tmp_path / "earlier" / "1") == first
    assert (tmp_path / "earlier" / "1" / "ita-full-12" / "modules").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "earlier", "notes.txt"]
    folder.check(other, again=False)


@pytest.mark.usefixtures("here")
def test_the_default_folder_is_the_streams_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result("compare", "--methods", "frozen", "--data", "chalk", *SMALL)
    assert [path.name for path in Path("runs").iterdir()] == ["compare-chalk"]


def test_a_dry_run_says_what_is_to_be_made_and_writes_nothing(compared: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = compared
    before = contents(out)
    rows = result("compare", "--methods", "ita", "tmc", "--seeds", 2, "--out", out, *SMALL, "--run.dry-run")["rows"]
    assert [(row["method"], row["runs"], row["there"]) for row in rows] == [("ita", 1, 1), ("tmc", 2, 0)]
    minutes = json.loads((out / "ita-0.json").read_text())["minutes"]
    assert rows[0]["minutes"] == pytest.approx(minutes)
    assert 0 < rows[1]["minutes"] < 5
    assert contents(out) == before
    result("compare", "--methods", "frozen", "--out", tmp_path / "new", *SMALL, "--run.dry-run")
    assert not (tmp_path / "new").exists()


def test_what_a_method_is_set_to_by_default_is_part_of_its_record() -> None:
    assert METHODS["derpp"].options == {"buffer": 500, "a": 0.5, "b": 2.0, "adapter": {"kind": "full"}}
    assert METHODS["l2"].options["regularizer"] == {"method": "l2", "strength": 0.1}


def test_a_comparison_does_not_go_into_a_pool(compared: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = compared
    before = sorted((out / "ita-0").iterdir())
    assert "holds a pool" in refused(capsys, "compare", "--out", out / "ita-0")
    assert sorted((out / "ita-0").iterdir()) == before


@pytest.mark.usefixtures("here")
def test_the_learning_rate_of_the_best_held_out_accuracy_is_taken(tmp_path: Path) -> None:
    """One that diverges is told as such, and ends nothing."""
    out, own = tmp_path / "runs", METHODS["finetune"].settings.lr
    small = ("--only", "animals", *SMALL[3:])
    result("compare", "--methods", "finetune", "--search", 1e36, 1, "--out", out, *small)
    found = json.loads((out / "search.json").read_text())
    tried = found["methods"]["finetune"]["tried"]
    assert [row["lr"] for row in tried] == [own * 1e36, own]
    assert tried[0]["accuracy"] is None
    trial = json.loads((out / "search" / "1" / "finetune-0.json").read_text())
    assert tried[1]["accuracy"] == trial["final_accuracy"]
    assert trial["settings"]["bench"]["validation"] == found["held_out"] > 0
    assert found["methods"]["finetune"]["chosen"] == own
    run = json.loads((out / "finetune-0.json").read_text())
    assert (run["settings"]["training"]["lr"], run["settings"]["bench"]["validation"]) == (own, 0)


@pytest.mark.usefixtures("here")
def test_learning_rates_suit_the_backbone(tmp_path: Path) -> None:
    """Those recommended for it, of other methods too; (IA)3's are the same for all, and what is asked for is taken."""
    photos, theta0, out = photographs(tmp_path) / "photos", small_vit(tmp_path), tmp_path / "out"
    names, rates = ("l2", "ita-ia3", "ita-full", "tmc"), {}
    data = ("--data", f"folder:{photos}", "--backbone", theta0, "--epochs", 1, "--no-edits", "--threads", 1)
    result("compare", "--methods", *names, "--lr", "ita-full=0.001", "--out", out, *data)
    for name in names:
        rates[name] = json.loads((out / f"{name}-0.json").read_text())["settings"]["training"]["lr"]
    sizes = Backbone.load(theta0).sizes
    assert sizes["lora"] != SIZES["lora"]
    assert rates == {
        "l2": suited(METHODS["l2"].settings.lr, "lora", sizes),
        "ita-ia3": METHODS["ita-ia3"].settings.lr,
        "ita-full": 0.001,
        "tmc": suited(METHODS["tmc"].settings.lr, "full", sizes),
    }


def test_a_search_is_of_factors_and_holds_images_out_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--search 0" in refused(capsys, "compare", "--search", 0, "--out", tmp_path)
    both = refused(capsys, "compare", "--search", 1, "--validation", 0.2, "--out", tmp_path)
    assert all(word in both for word in ("--search", "--validation"))


@pytest.mark.usefixtures("here")
def test_learning_rates_of_methods_are_given_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A run whose rate is as it was is found again, whatever the others' are."""
    out, small = tmp_path / "runs", ("--only", "animals", *SMALL[3:])
    result("compare", "--methods", "frozen", "l2", "--lr", "l2=0.001", "--no-edits", "--out", out, *small)
    l2 = json.loads((out / "l2-0.json").read_text())
    assert (l2["settings"]["training"]["lr"], l2["edits"]) == (0.001, [])
    frozen = (out / "frozen-0.json").stat().st_mtime_ns
    result("compare", "--methods", "frozen", "l2", "--lr", "l2=0.002", "--out", out, *small)
    assert json.loads((out / "l2-0.json").read_text())["settings"]["training"]["lr"] == 0.002
    assert (out / "frozen-0.json").stat().st_mtime_ns == frozen
    capsys.readouterr()
    for bad, said in (
        ("l2", "name=number"),
        ("ita=1", "compared and learn: l2"),
        ("frozen=1", "compared and learn: l2"),
        ("l2=0", "above 0"),
        ("l2=nan", "above 0"),
    ):
        told = refused(capsys, "compare", "--methods", "frozen", "l2", "--lr", bad, "--out", tmp_path / "no")
        assert f"--lr {bad.split('=')[0]}" in told.replace("'", "")
        assert said in told
    assert "leave out --lr" in refused(capsys, "compare", "--search", 1, "--lr", "ita=1", "--out", tmp_path / "no")


def test_the_pool_of_a_method_is_kept_and_gives_the_row(compared: tuple[Path, Any]) -> None:
    out, found = compared
    pool = Pool.open(out / "ita-0")
    made = list(results(pool))
    assert [len(stage.model.classes) for stage in made] == [1, 2]
    assert made[-1].stored / 2 == found["rows"][0]["numbers_per_task"]
    assert 0 < made[0].stored < made[1].stored
    running = pool.fisher()
    assert running is not None
    for task, stage, free in zip(pool.tasks, made, results(pool, fisher=False), strict=True):
        assert stage.stored - free.stored == sum(f.numel() for f in running.tensors().values())
        seconds = pool.logged()[task]["seconds"]["fisher"]
        assert stage.set_up_seconds - free.set_up_seconds == pytest.approx(seconds)


def test_modules_are_edited_with_the_first_seed_and_networks_are_not(compared: tuple[Path, Any]) -> None:
    out, _ = compared
    pool = Pool.open(out / "ita-0")
    rows = json.loads((out / "ita-0.json").read_text())["edits"]
    drop = next(row for row in rows if (row["target"], row["how"]) == ("animals", "drop"))
    bench = Bench.from_record(json.loads((out / "comparison.json").read_text())["bench"])
    assert bench.source.data == "chalk"  # taken by default, and said
    assert drop["target_accuracy"] is None
    assert drop["control_accuracy"] == target_and_control(pool.unlearn("animals"), bench.stream(0), "animals")[1]
    assert len(rows) == 4 * 2
    assert json.loads((out / "finetune-0.json").read_text())["edits"] == []


def test_bad_input_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none"
    for methods, words in (("ita fine", "'fine'"), ("ita ita", "'ita'"), ("ita,iel", "--methods ita iel")):
        assert words in refused(capsys, "compare", "--methods", *methods.split(), "--out", out)
    for option in ("--seeds", "--jobs", "--threads", "--epochs", "--batch-size"):
        assert f"{option} 0" in refused(capsys, "compare", option, 0, "--out", out)
    assert "--workers 2" in refused(capsys, "compare", "--engine", "ray", "--jobs", 2, "--out", out)
    assert "--engine ray" in refused(capsys, "compare", "--workers", 2, "--out", out)
    assert "tpu" in refused(capsys, "compare", "--device", "tpu", "--out", out)
    assert "Fraction 1.5" in refused(capsys, "compare", "--validation", 1.5, "--out", out)
    assert "nowhere" in refused(capsys, "compare", "--data", "folder:nowhere", "--out", out)
    assert not out.exists()


def test_what_goes_wrong_in_a_run_is_said_by_method_and_seed(tmp_path: Path) -> None:
    """The broken image is found when it is decoded, in the run's own process."""
    for side in ("train", "test"):
        for name in ("a", "b"):
            for i in range(2):
                (tmp_path / side / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / side / name / f"{i}.png").write_bytes(b"not an image")
    bench = Bench(source=Source(data=f"folder:{tmp_path}"))
    with pytest.raises(InputError, match=r"frozen, seed 0: .*png"):
        compare(bench, ["frozen"], out=tmp_path / "out", say=lambda _: None)
    assert not list((tmp_path / "out").glob("*-0.json"))


def to_the_newest_thread(process: subprocess.Popen[str]) -> None:
    """As the system may: the one that waits for the runs is not woken by it."""

    def began(thread: Path) -> int:
        return int((thread / "stat").read_text().rpartition(")")[2].split()[19])

    threads = [t for t in Path(f"/proc/{process.pid}/task").iterdir() if int(t.name) != process.pid]
    newest = int(max(threads, key=began).name)
    assert ctypes.CDLL(None).tgkill(process.pid, newest, int(signal.SIGTERM)) == 0


ONLY_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call that only Linux has")


@ONLY_LINUX
def test_a_comparison_that_is_killed_leaves_no_run(tmp_path: Path) -> None:
    """SIGKILL leaves it no time to end them: they end by themselves."""
    command = [sys.executable, "-m", "intarsia", "compare", "--methods", "finetune", "ewc", "--jobs", "2"]
    command += ["--threads", "1", "--epochs", "50", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        try:
            for _ in range(2):
                process.stderr.readline()
            runs = until(lambda: found if len(found := children(process.pid)) == 2 else None)
            process.kill()
            process.wait()
            until(lambda: not any(map(alive, runs)) or None)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_run_that_was_stopped_goes_on_and_measures_the_same(here: None, tmp_path: Path) -> None:
    bench = Bench(source=Source(data="chalk", only=("animals", "vehicles"), max_per_class=2), epochs=1)
    whole = compare(bench, ["ita"], out=tmp_path / "whole", edits=False, say=lambda _: None)[0]
    said: list[str] = []

    def stop(name: str, done: int, of: int) -> None:
        if name.startswith("vehicles: training"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("cells.silent", stop)
        compare(bench, ["ita"], out=tmp_path / "out", edits=False, say=said.append)
    assert Index.read(tmp_path / "out" / "ita-0").tasks == ("animals",)
    learned = (tmp_path / "out" / "ita-0" / "modules" / "animals" / "card.json").stat().st_mtime_ns

    again = compare(bench, ["ita"], out=tmp_path / "out", edits=False, say=said.append)[0]
    assert said[-1] == "ita, seed 0: goes on where it was stopped; minutes and memory are of what is left"
    assert json.loads((tmp_path / "out" / "ita-0.json").read_text())["resumed"]
    assert (tmp_path / "out" / "ita-0" / "modules" / "animals" / "card.json").stat().st_mtime_ns == learned
    assert again["final_accuracy"] == whole["final_accuracy"]
    assert Index.read(tmp_path / "out" / "ita-0").files == Index.read(tmp_path / "whole" / "ita-0").files

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("cells.silent", stop)
        compare(replace(bench, epochs=2), ["ita"], out=tmp_path / "out", edits=False, again=True, say=said.append)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("cells.silent", stop)
        other = replace(bench, epochs=3, rates={"l2": 0.5})
        compare(other, ["ita", "l2"], out=tmp_path / "out", edits=False, again=True, say=said.append)
    learned = (tmp_path / "out" / "ita-0" / "modules" / "animals" / "card.json").stat().st_mtime_ns
    compare(replace(bench, epochs=3), ["ita"], out=tmp_path / "out", edits=False, say=said.append)
    assert (tmp_path / "out" / "ita-0" / "modules" / "animals" / "card.json").stat().st_mtime_ns == learned
    card = json.loads((tmp_path / "out" / "ita-0" / "modules" / "animals" / "card.json").read_text())
    assert card["settings"]["epochs"] == 3  # of another budget nothing is taken


def test_a_run_ends_when_its_standard_input_does() -> None:
    """What holds where there is no ``prctl``: nobody has told this one's parent to be dead."""
    job = {"bench": Bench(epochs=50).record(), "name": "finetune", "seed": 0, "folder": "none", "parent": os.getpid()}
    command = [sys.executable, "-c", "from intarsia.study.cells.process import child; child()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(60) == 1


def children(parent: int) -> set[int]:
    """Processes that a process has started."""
    found = Path(f"/proc/{parent}/task").glob("*/children")
    return {int(number) for path in found for number in path.read_text().split()}


def alive(process: int) -> bool:
    """It runs; who has ended and was not waited for does not."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """What is found, as soon as something is."""
    end = time.monotonic() + seconds
    while (value := found()) is None:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


@pytest.mark.skipif(os.name != "posix", reason="a signal that only POSIX has")
@pytest.mark.parametrize("end", [subprocess.Popen.terminate, pytest.param(to_the_newest_thread, marks=ONLY_LINUX)])
def test_a_comparison_that_is_ended_ends_its_runs(tmp_path: Path, end: Callable[[subprocess.Popen[str]], None]) -> None:
    """Two at once, of many minutes: it waits for neither, and nothing is written."""
    command = [sys.executable, "-m", "intarsia", "compare", "--methods", "finetune", "ewc", "ita", "--jobs", "2"]
    command += ["--threads", "1", "--epochs", "50", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        try:
            said = {process.stderr.readline().strip() for _ in range(2)}
            end(process)
            _, more = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):  # none is left, unless it failed: then its runs would go on for an hour
                os.killpg(process.pid, signal.SIGKILL)
    assert said == {"finetune, seed 0", "ewc, seed 0"}
    assert more.startswith("intarsia: stopped: runs that ended are in ")
    assert process.returncode == 128 + signal.SIGTERM
    assert not list((tmp_path / "out").glob("*-0.json"))


def test_a_run_that_is_killed_is_said_by_method_and_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does where memory ends; what another process finds is a program that kills itself."""
    (tmp_path / "killed").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "killed").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "killed"))
    with pytest.raises(InputError, match="frozen, seed 0: its process was killed by signal 9"):
        compare(Bench(), ["frozen"], out=tmp_path / "out", say=lambda _: None)


def test_a_bench_is_what_its_record_says() -> None:
    bench = Bench(source=Source(data="chalk", split=Path("a.json"), only=("x",)), epochs=2, targets=("*qkv",))
    assert Bench.from_record(json.loads(json.dumps(bench.record()))) == bench


def test_a_row_is_the_mean_over_seeds_with_its_spread() -> None:
    measured = dict.fromkeys(("task_il_accuracy", "average_incremental_accuracy", "memory_mib", "images_kept"), 1.0)
    measured |= {"set_up_minutes": 0.5, "training_minutes": 2.0, "numbers_per_task": 250_000, "final_forgetting": None}
    row = summary("joint", [{**measured, "final_accuracy": a} for a in (40.0, 44.0)])
    assert (row["final_accuracy"], row["final_forgetting"], row["seeds"]) == (42.0, None, 2)
    assert row["spread"]["final_accuracy"] == pytest.approx(8**0.5)
    assert cells(row)[:3] == ["joint", "42.0±2.8", "-"]
    assert cells(row)[5:] == ["0.5+2.0", "1", "0.25 M", "1"]
    assert markdown([row]).count("\n") == 3


def test_every_method_is_known_by_its_settings() -> None:
    assert set(STANDARD) < set(METHODS)
    assert all(isinstance(m.settings, Settings) and m.about for m in METHODS.values())
