"""Pools that are learned once for all tests that only read them; a thread a process, as tests run side by side.

Their files are kept in memory where there is room: pools flush every file to the disk, which takes as long as learning
a tiny one.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from cases import QUICK, backbone, stream
from intarsia import ITA, LoRA, Pool, learn

settings.register_profile("patient", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("patient")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts tests in its background has set it so,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and they would start commands that cannot be stopped
torch.set_num_threads(1)
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
LONG = (
    *("ray", "readme", "survival", "exchange", "compare", "processes", "learner", "studio_browser", "cli"),
    *("loop", "kfac", "architectures", "hub", "flags", "manage", "baselines", "torchvision", "engines", "report"),
)


def pytest_xdist_auto_num_workers() -> int:
    """Three processes on two cores: half of the time goes into waiting for processes that tests have started."""
    return 3 * (os.cpu_count() or 1) // 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that none is left over at the end for one process of two."""
    first = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: first.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def _same_global_randomness() -> None:
    """The tests' order and choice do not matter to what torch draws from its global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pool of four LoRA modules on `backbone()` and `stream()`; read only."""
    out = tmp_path_factory.mktemp("pools") / "lora"
    learn(backbone(), stream(), adapter=LoRA(2), regularizer=ITA(0.1), training=QUICK, out=out)
    return out


@pytest.fixture
def pool(learned: Path) -> Pool:
    """That pool, opened with a fresh backbone."""
    return Pool.open(learned, backbone())


@pytest.fixture
def copied(learned: Path, tmp_path: Path) -> Path:
    """A copy of the learned pool that a test may spoil."""
    return Path(shutil.copytree(learned, tmp_path / "copy"))
