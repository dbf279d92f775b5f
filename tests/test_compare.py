"""Methods side by side, as a user runs them: real processes, a table, and nothing made twice."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_cli import refused, result

from intarsia.baselines.modules import results
from intarsia.errors import InputError
from intarsia.evaluation.metrics import target_and_control
from intarsia.pool import Pool
from intarsia.study.choice import Source
from intarsia.study.compare import Bench, compare, summary
from intarsia.study.methods import METHODS, STANDARD
from intarsia.study.summary import cells, markdown
from intarsia.training.settings import Settings

pytestmark = pytest.mark.slow

SMALL = ("--only", "animals", "vehicles", "--max-per-class", 4, "--epochs", 1, "--threads", 1)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("compare") / "runs"
    return out, result("compare", "--methods", "ita,finetune", "--seeds", 1, "--out", out, *SMALL)


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


def test_a_run_that_is_there_is_not_made_again_and_one_with_other_settings_is(compared: tuple[Path, Any]) -> None:
    out, first = compared
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*-0.json")}
    arguments = ("compare", "--methods", "finetune,frozen", "--out", out)
    again = result(*arguments, "--jobs", 2, *SMALL)
    assert again["rows"][0] == first["rows"][1]
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*-0.json")}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"frozen-0.json"}
    result("compare", "--methods", "frozen", "--out", out, *SMALL[:-4], "--epochs", 2, "--threads", 1)
    assert (out / "frozen-0.json").stat().st_mtime_ns > after["frozen-0.json"]
    record = json.loads((out / "frozen-0.json").read_text())
    (out / "frozen-0.json").write_text(
        json.dumps({**record, "settings": {**record["settings"], "options": {"a": 1.0}}})
    )
    result("compare", "--methods", "frozen", "--out", out, *SMALL[:-4], "--epochs", 2, "--threads", 1)
    assert json.loads((out / "frozen-0.json").read_text())["settings"]["options"] == {}


def test_what_a_method_is_set_to_by_default_is_part_of_its_record() -> None:
    assert METHODS["derpp"].options == {"buffer": 500, "a": 0.5, "b": 2.0}
    assert METHODS["l2"].options == {"strength": 0.1}


def test_a_comparison_does_not_go_into_a_pool(compared: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = compared
    before = sorted((out / "ita-0").iterdir())
    assert "holds a pool" in refused(capsys, "compare", "--out", out / "ita-0")
    assert sorted((out / "ita-0").iterdir()) == before


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
        assert stage.stored - free.stored == sum(f.numel() for f in running.sums.values())
        seconds = pool.logged()[task]["seconds"]["fisher"]
        assert stage.set_up_seconds - free.set_up_seconds == pytest.approx(seconds)


def test_modules_are_edited_with_the_first_seed_and_networks_are_not(compared: tuple[Path, Any]) -> None:
    out, _ = compared
    pool = Pool.open(out / "ita-0")
    rows = json.loads((out / "ita-0.json").read_text())["edits"]
    drop = next(row for row in rows if (row["target"], row["how"]) == ("animals", "drop"))
    bench = Bench.from_record(json.loads((out / "comparison.json").read_text())["bench"])
    assert drop["target_accuracy"] is None
    assert drop["control_accuracy"] == target_and_control(pool.unlearn("animals"), bench.stream(0), "animals")[1]
    assert len(rows) == 4 * 2
    assert json.loads((out / "finetune-0.json").read_text())["edits"] == []


def test_bad_input_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none"
    for methods, words in (("ita,fine", "'fine'"), ("ita,ita", "'ita'"), (",", "no method")):
        assert words in refused(capsys, "compare", "--methods", methods, "--out", out)
    for option in ("--seeds", "--jobs", "--threads", "--epochs", "--batch-size"):
        assert f"{option} 0" in refused(capsys, "compare", option, 0, "--out", out)
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
    assert not list((tmp_path / "out").glob("*.json"))


def to_the_newest_thread(process: subprocess.Popen[str]) -> None:
    """As the system may: the one that waits for the runs is not woken by it."""
    newest = max(int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir())
    assert newest != process.pid
    assert ctypes.CDLL(None).tgkill(process.pid, newest, int(signal.SIGTERM)) == 0


ONLY_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call that only Linux has")


@pytest.mark.skipif(os.name != "posix", reason="a signal that only POSIX has")
@pytest.mark.parametrize("end", [subprocess.Popen.terminate, pytest.param(to_the_newest_thread, marks=ONLY_LINUX)])
def test_a_comparison_that_is_ended_ends_its_runs(tmp_path: Path, end: Callable[[subprocess.Popen[str]], None]) -> None:
    """Two at once, of many minutes: it waits for neither, and nothing is written."""
    command = [sys.executable, "-m", "intarsia", "compare", "--methods", "finetune,ewc,ita", "--jobs", "2"]
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
    assert not list((tmp_path / "out").glob("*.json"))


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
