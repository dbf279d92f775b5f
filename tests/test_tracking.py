"""Trackers: what a run is made with and what comes of it, written by their libraries and read back by them."""

import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from test_cli import refused, result

from cases import QUICK, backbone, contents, stream
from intarsia import ITA, InputError, LoRA, evaluate, learn, report_to
from intarsia.tracking import writers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Points = Mapping[str, list[tuple[int, float]]]
"""Measure -> its steps and values."""


def of_tensorboard(root: Path) -> tuple[Mapping[str, Any], Points]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    messages = import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    found = EventAccumulator(str(root / "pool-tensorboard"))
    found.Reload()
    told = messages.HParamsPluginData.FromString(
        found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    given = {name: getattr(v, str(v.WhichOneof("kind"))) for name, v in told.session_start_info.hparams.items()}
    return given, {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def of_trackio(root: Path) -> tuple[Mapping[str, Any], Points]:
    from trackio.sqlite_storage import SQLiteStorage  # noqa: PLC0415

    found: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs("intarsia", "pool"):
        for name, value in row.items():
            if "/" in name or "accuracy" in name:
                found.setdefault(name, []).append((row["step"], value))
    given = SQLiteStorage.get_run_config("intarsia", "pool")
    assert given is not None
    return given, found


def of_mlflow(root: Path) -> tuple[Mapping[str, Any], Points]:
    client = import_module("mlflow").MlflowClient()
    experiment = client.get_experiment_by_name("intarsia")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("pool", "FINISHED")
    found = {n: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, n)] for n in run.data.metrics}
    return run.data.params, found


def logged_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Of a file in LevelDB's log format, behind seven bytes of its own."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)  # 1: whole; 2, 3, 4: first, further, last part
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):
            yield parts
            parts = b""


def of_wandb(root: Path) -> tuple[Mapping[str, Any], Points]:
    """From the file that `wandb sync` sends."""
    messages = import_module("wandb.proto.wandb_internal_pb2")
    (path,) = root.glob("wandb/offline-run-*/*.wandb")
    given, found = dict[str, Any](), dict[str, list[tuple[int, float]]]()
    for data in logged_records(path.read_bytes()):
        record = messages.Record.FromString(data)
        for update in (*record.run.config.update, *record.config.update):
            given[update.key] = json.loads(update.value_json)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if not name.startswith("_") and name not in ("epoch", "task"):
                found.setdefault(name, []).append((row["epoch" if name.startswith("loss/") else "task"], value))
    return given, found


READERS: dict[str, Callable[[Path], tuple[Mapping[str, Any], Points]]] = {
    "tensorboard": of_tensorboard,
    "trackio": of_trackio,
    "mlflow": of_mlflow,
    "wandb": of_wandb,
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the libraries write: nothing leaves the machine."""
    for name, value in {
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils  # noqa: PLC0415  which have read their variable when they were loaded

    for module in (trackio, utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", list(READERS))
def test_what_is_reported_is_read_back_by_the_library(
    name: str, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(name)
    out = offline / "pool"
    with report_to([name], out) as tracker:
        pool = learn(
            backbone(),
            stream(2),
            adapter=LoRA(2),
            regularizer=ITA(0.1),
            training=QUICK,
            out=out,
            tracker=tracker,
        )
        result = evaluate(pool.mean(), stream(2))
        tracker.evaluated(result)
    given, found = READERS[name](offline)
    for key, value in {
        "settings.lr": "0.01",
        "settings.method": "ita",
        "adapter.rank": "2",
        "settings.step": "proximal",
    }.items():
        assert str(given[key]).removesuffix(".0") == value, key
    expected = {"accuracy": [*enumerate(result.incremental_accuracy, 1)]}
    expected |= {"final_accuracy": [(2, result.final_accuracy)]}
    first, last = result.accuracy_matrix
    expected |= {"task_accuracy/task01": [(1, first[0]), (2, last[0])], "task_accuracy/task02": [(2, last[1])]}
    for task in pool.tasks:
        expected[f"loss/{task}"] = [*enumerate(pool.card(task).measures["losses"], 1)]
    logged = pool.logged()
    for phase in logged["task01"]["seconds"]:
        expected[f"seconds/{phase}"] = [(i, logged[t]["seconds"][phase]) for i, t in enumerate(pool.tasks, 1)]
    assert found.keys() == expected.keys()
    for measure, points in expected.items():
        assert [step for step, _ in sorted(found[measure])] == [step for step, _ in points], measure
        assert [v for _, v in sorted(found[measure])] == pytest.approx([v for _, v in points], rel=1e-6), measure
    assert capsys.readouterr().out == ""  # what is printed is ours


class Failing:
    """A tracker whose server is gone after the first word."""

    def __init__(self, folder: Path) -> None:
        self.told = 0

    def _fail(self) -> None:
        self.told += 1
        if self.told > 1:
            raise ConnectionError("no route to host\nand more lines")

    def parameters(self, values: Mapping[str, Any]) -> None:
        self._fail()

    def scalars(self, values: Mapping[str, float], axis: str, step: int) -> None:
        self._fail()

    def close(self, *, failed: bool) -> None:
        self._fail()


def test_a_tracker_that_fails_is_told_once_and_the_run_is_what_it_is_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(writers.TRACKERS, "wandb", Failing)
    said: list[str] = []
    how = {"adapter": LoRA(2), "regularizer": ITA(0.1), "training": QUICK}
    with report_to(["wandb", "tensorboard"], tmp_path / "pool", say=said.append) as tracker:
        pool = learn(backbone(), stream(2), out=tmp_path / "pool", tracker=tracker, **how)
        tracker.evaluated(evaluate(pool.mean(), stream(2)))
    assert len(said) == 1, said
    assert not [part for part in ("--report-to wandb", "no route to host", "goes on") if part not in said[0]]
    assert "\n" not in said[0]
    assert "final_accuracy" in of_tensorboard(tmp_path)[1]  # the other one goes on
    learn(backbone(), stream(2), out=tmp_path / "plain", **how)
    assert contents(tmp_path / "pool", {"log.jsonl"}) == contents(tmp_path / "plain", {"log.jsonl"})


def test_what_cannot_be_begun_is_one_line_and_nothing_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> writers.Writer:
        raise RuntimeError("api key is not set")

    monkeypatch.setitem(writers.TRACKERS, "wandb", broken)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name, words in {
        "mlflow": ("--report-to mlflow", "cannot be imported", "pip install 'intarsia[track]'"),
        "wandb": ("--report-to wandb", "api key is not set", "leave it out", "nothing was learned"),
    }.items():
        with pytest.raises(InputError) as error, report_to([name], tmp_path / "pool"):
            pytest.fail("it was begun")
        assert not [word for word in words if word not in str(error.value)], error.value
    learning = ("learn", "--max-per-class", 4, "--only", "animals", "--out", tmp_path / "pool")
    said = refused(capsys, *learning, "--report-to", "tensorbord")
    for word in ("'tensorbord'", "trackio, mlflow, wandb, tensorboard", "did you mean tensorboard?"):
        assert word in said
    assert not list(tmp_path.iterdir())


def test_the_command_reports_the_accuracy_after_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--only", "animals", "vehicles", "--max-per-class", 4, "--epochs", 1)
    found = result("learn", *only, "--out", tmp_path / "pool", "--report-to", "tensorboard")
    given, points = of_tensorboard(tmp_path)
    assert (given["stream.name"], given["stream.load.spec"], given["stream.load.max_per_class"]) == (
        "chalk",
        "chalk",
        4,
    )
    assert "bee" not in str(given)
    assert [v for _, v in points["accuracy"]] == pytest.approx(found["incremental_accuracy"])
    assert len(found["accuracy_matrix"]) == 2
    assert [len(points[f"loss/{task}"]) for task in ("animals", "vehicles")] == [1, 1]
