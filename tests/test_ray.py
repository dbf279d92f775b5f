"""Ray: two nodes on this machine learn the pool of one process; workers, a node and the driver are killed meanwhile."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from scaling import Deadly
from test_cli import refused, result
from test_engines import APART, OPTIONS, each_adapter
from torch import Tensor

from cases import backbone, contents, photographs, small_vit, stream
from intarsia import InputError, LoRA, learn
from intarsia.adapters import Adapter
from intarsia.cli.main import main
from intarsia.engines.ray import Ray

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
DEADLINE = 240
WORK, CELL = "ray::_work", "ray::cell"
"""What a worker is called that learns a task, and one that makes a run of a comparison."""
VARIES = {"set_up_minutes", "training_minutes", "minutes", "memory_mib", "spread"}
ALIVE = ("gcs_server", "raylet/raylet", "ray::IDLE", WORK, CELL)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of one processor each; the first is also the driver's."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415  only beside Ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join(map(str, (HERE.parent / "src", HERE, HERE.parent / "benchmarks" / "performance"))),
        )
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@each_adapter
@pytest.mark.parametrize("workers", [1, 2])
def test_one_worker_and_two_learn_the_pool_of_one_process(
    adapter: Adapter, workers: int, nodes: Any, tmp_path: Path
) -> None:
    options, said = {**OPTIONS, "adapter": adapter}, set[str]()
    one = learn(backbone(), stream(), out=tmp_path / "one", **options)
    many = learn(
        backbone(),
        stream(),
        out=tmp_path / "p",
        engine=Ray(workers=workers),
        progress=lambda p, *_: said.add(p),
        **options,
    )
    assert contents(many.path, APART) == contents(one.path, APART)
    phases = ("features and class statistics", "Fisher", "training", "prototypes")
    assert said == {f"{task}: {phase}" for task in one.tasks for phase in phases} - {"task01: prototypes"}
    assert len((many.path / "log.jsonl").read_text().splitlines()) == len(one.tasks)


def test_workers_that_are_killed_lose_nothing(nodes: Any, tmp_path: Path) -> None:
    kills = tmp_path / "kills"
    kills.mkdir()
    one = learn(backbone(), stream(), out=tmp_path / "one", **OPTIONS)
    for number in range(3):
        (kills / str(number)).touch()
    options = {**OPTIONS, "adapter": Deadly(2, folder=str(kills))}
    many = learn(backbone(), stream(), out=tmp_path / "p", engine=Ray(), **options)
    assert not list(kills.iterdir())
    assert contents(many.path, APART) == contents(one.path, APART)


@dataclass(frozen=True)
class Broken(LoRA):
    """It cannot be attached."""

    def initial(self, name: str, theta0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        raise InputError("so it is")


def test_what_a_worker_refuses_is_a_line_of_ours(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        learn(backbone(), stream(), out=tmp_path / "p", engine=Ray(), **{**OPTIONS, "adapter": Broken(2)})
    assert str(refused.value).startswith("so it is. 0 tasks are in")
    assert type(refused.value) is InputError


def test_a_node_that_is_taken_away_loses_nothing(nodes: Any, tmp_path: Path) -> None:
    """The last of the tests that need two."""
    one, second = learn(backbone(), stream(), out=tmp_path / "one", **OPTIONS), nodes.worker_nodes

    def take(phase: str, done: int, total: int) -> None:
        if phase.endswith("training") and nodes.worker_nodes:
            nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    assert len(second) == 1
    many = learn(backbone(), stream(), out=tmp_path / "p", engine=Ray(), progress=take, **OPTIONS)
    assert not nodes.worker_nodes
    assert contents(many.path, APART) == contents(one.path, APART)


def test_a_worker_that_has_no_room_is_refused(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a worker needs 1 GPU, Ray has 0"):
        learn(backbone(), stream(), out=tmp_path / "p", engine=Ray(gpus_per_worker=1), **OPTIONS)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_a_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**options: Any) -> None:
        """As Ray where there is none: that takes it half a minute."""
        assert options["address"] == address
        assert "num_cpus" not in options  # of a cluster that runs
        raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    flags = ["--engine", "ray", "--address", address, "--only", "animals", "--max-per-class", "2"]
    said = refused(capsys, "learn", *flags, "--out", tmp_path / "p")
    assert said == f"intarsia: Ray at {address} cannot be had: Could not find any running Ray instance\n"
    assert not (tmp_path / "p").exists()


def processes(session: int) -> list[str]:
    """Of Ray that do work, in a session of processes. (Two that only report end within a minute of its death.)"""
    listed = subprocess.run(["ps", "-eo", "sid,args"], capture_output=True, text=True, check=True).stdout
    own = [line for line in listed.splitlines() if line.split(maxsplit=1)[0] == str(session)]
    return [line for line in own if any(what in line for what in ALIVE)]


def kill_worker(driver: subprocess.Popen[str], called: str = WORK) -> None:
    """Kill one that is at work."""

    def busy() -> list[int]:
        listed = subprocess.run(["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()]
        return [int(pid) for pid, sid, what in rows if sid == str(driver.pid) and what.startswith(called)]

    until(lambda: bool(busy()) or driver.poll() is not None)
    os.kill(busy()[0], signal.SIGKILL)


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # looking costs a process


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_driver_that_is_killed_or_stopped_goes_on(tmp_path: Path) -> None:
    root, out = photographs(tmp_path), tmp_path / "p"
    flags = ["--data", f"folder:{root / 'photos'}", "--tasks", "3", "--backbone", small_vit(root), "--batch-size", "4"]
    flags += ["--run.no-evaluate", "--training.fisher-over", "others"]
    flags += ["--epochs", "12"]  # so that none ends before it is stopped
    main(["learn", *flags, "--out", str(tmp_path / "one")])
    staged = out / ".run" / "engine"
    for how, at, code in ((signal.SIGKILL, "*-fisher", -9), (signal.SIGINT, "*-tune", 130)):
        given = ["--resume", "--run.no-evaluate"] if out.exists() else flags
        command = [sys.executable, "-m", "intarsia", "learn", *given, "--out", str(out), "--engine", "ray"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, "--workers", "2", "--json"], start_new_session=True, **pipes) as driver:
            if how is signal.SIGINT:
                kill_worker(driver)
            until(lambda at=at: bool(list(staged.glob(at))) or driver.poll() is not None)
            driver.send_signal(how)
            printed, said = driver.communicate(timeout=DEADLINE)
        assert driver.returncode == code, said
        assert "Traceback" not in said
        assert not printed  # of what Ray tells of the dead worker
        until(lambda: not processes(driver.pid))
        if how is signal.SIGINT:
            last = said.strip().splitlines()[-1]
            assert last.startswith("intarsia: stopped: ")
            assert f"results of its workers kept: go on with `intarsia learn --resume --out {out}`" in last
    main(["learn", "--resume", "--run.no-evaluate", "--out", str(out)])
    apart = {*APART, "config.json"}
    assert contents(out, apart) == contents(tmp_path / "one", apart)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_comparison_of_workers_and_a_driver_that_are_killed_is_that_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = photographs(tmp_path), tmp_path / "p"
    monkeypatch.chdir(root)
    flags = ["--methods", "finetune", "ita", "--data", "folder:photos", "--tasks", "3", "--batch-size", "4"]
    flags += ["--backbone", "timm/test_vit@weights.safetensors?image-size=48", "--json"]
    one = result("compare", *flags, "--threads", 1, "--out", tmp_path / "one")
    flags += ["--out", str(out), "--engine", "ray", "--workers", "1"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "intarsia", "compare", *flags]
    with subprocess.Popen(command, start_new_session=True, **pipes) as driver:
        kill_worker(driver, CELL)
        until(lambda: (out / "finetune-0.json").exists() or driver.poll() is not None)
        driver.kill()
        printed, said = driver.communicate(timeout=DEADLINE)
    assert driver.returncode == -signal.SIGKILL, said
    assert not printed
    until(lambda: not processes(driver.pid))
    assert not (out / "ita-0.json").exists()
    made = (out / "finetune-0.json").read_bytes()
    many = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (out / "finetune-0.json").read_bytes() == made
    for ours, theirs in zip(many["rows"], one["rows"], strict=True):
        assert {key: ours[key] for key in ours if key not in VARIES} == {
            key: theirs[key] for key in theirs if key not in VARIES
        }
    assert contents(out / "ita-0", APART) == contents(tmp_path / "one" / "ita-0", APART)
    assert sorted(contents(out)) == sorted(contents(tmp_path / "one"))


def test_a_comparison_without_ray_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(capsys, "compare", "--engine", "ray", "--methods", "frozen", "--out", tmp_path / "p")
    assert "pip install 'intarsia[ray]'" in said
    assert not (tmp_path / "p").exists()
