"""Several processes that learn one module together: as torchrun starts them, and the arithmetic of their shares."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cases import contents
from intarsia.cli.main import main
from intarsia.parallel.processes import ALONE, Processes, current, together
from intarsia.pool import Pool

RUN = ["--data", "sketches", "--only", "animals", "food", "--max-per-class", "8", "--epochs", "2", "--run.no-evaluate"]


@given(count=st.integers(0, 300), processes=st.integers(1, 9), unit=st.integers(1, 70))
def test_every_row_is_one_processes_and_cut_at_whole_units(count: int, processes: int, unit: int) -> None:
    parts = [Processes(rank, processes).rows(count, unit) for rank in range(processes)]
    assert [row for part in parts for row in range(count)[part]] == list(range(count))
    assert all(part.start % unit == 0 for part in parts if part.start < part.stop)
    units = [-(-(part.stop - part.start) // unit) for part in parts]
    assert max(units) - min(units) <= 1


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.ones(3, requires_grad=True)
    assert ALONE.joined(tensor, slice(0, 3), 3) is tensor
    ALONE.sum_([tensor])
    ALONE.add_gradients([torch.nn.Parameter(tensor)])
    assert tensor.grad is None
    assert ALONE.agree(True)
    assert not ALONE.agree(False)
    assert ALONE.leads


def test_processes_work_together_in_the_block_alone() -> None:
    two = Processes(1, 2)
    with pytest.raises(RuntimeError), together(two):
        assert current() is two
        raise RuntimeError
    assert current() is ALONE


def torchrun(*arguments: object, count: int = 2) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [*start, "-m", "intarsia", "learn", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def whole(*arguments: object) -> str:
    with torchrun(*arguments) as run:
        said = run.communicate(timeout=300)[1]
    assert run.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processes") / "two"
    said = whole(*RUN, "--out", out)
    assert said.count("food: training") == 1  # one of them speaks
    return out


def close(one: Path, other: Path) -> None:
    """Task vectors within 1e-5; all else within 1e-5 of its tensor's largest number, if above 1.

    Offsets of drifts within twice that: they are differences of products as large as the features.
    """
    pools = [Pool.open(path) for path in (one, other)]
    assert pools[0].tasks == pools[1].tasks == ("animals", "food")
    for task in pools[0].tasks:
        vectors = [pool.vector(task) for pool in pools]
        for name, tau in vectors[0].items():
            torch.testing.assert_close(tau, vectors[1][name], rtol=0, atol=1e-5)
    for path in (*one.glob("*.safetensors"), *one.glob("modules/*/[!v]*.safetensors")):
        told = load_file(other / path.relative_to(one))
        for name, value in load_file(path).items():
            scale = float(value.double().abs().max()) if value.numel() else 1.0
            bound = 2e-5 if name.endswith("offset") else 1e-5
            torch.testing.assert_close(value, told[name], rtol=0, atol=bound * max(1.0, scale))


@pytest.mark.slow
def test_a_pool_learned_by_two_is_one_processes(by_two: Path, tmp_path: Path) -> None:
    main(["learn", *RUN, "--out", str(tmp_path / "one")])
    close(by_two, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_process_that_is_killed_ends_all_with_one_line_and_any_number_goes_on(by_two: Path, tmp_path: Path) -> None:
    """Two again come to the same to the bit; one alone to the same within rounding."""
    out = tmp_path / "two"
    with torchrun(*RUN, "--out", out) as run:
        deadline = time.monotonic() + 200
        while not (out / ".run" / "epoch.safetensors").exists():
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.01)
        os.kill(of_rank(run.pid, 1), signal.SIGKILL)
        said = run.communicate(timeout=120)[1]
    assert run.returncode not in (0, None)
    assert len([line for line in said.splitlines() if line.startswith("intarsia:")]) == 1, said
    assert "--resume" in said
    shutil.copytree(out, tmp_path / "one")
    whole("--resume", "--run.no-evaluate", "--out", out)
    left_out = {"log.jsonl", "config.json"}
    assert contents(out, left_out) == contents(by_two, left_out)
    main(["learn", "--resume", "--run.no-evaluate", "--out", str(tmp_path / "one")])
    close(by_two, tmp_path / "one")


def of_rank(parent: int, rank: int) -> int:
    """The process that torchrun has started with a rank."""
    children = [int(n) for path in Path(f"/proc/{parent}/task").glob("*/children") for n in path.read_text().split()]
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(f"no process of rank {rank} among {children}")
