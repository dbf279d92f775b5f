"""One writer: a lock whose file is removed while others wait for it is not held by two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from intarsia.store.lock import one_writer

WAITER = """
import fcntl, sys
from pathlib import Path
from intarsia.errors import InputError
from intarsia.store.lock import one_writer
flock, waited = fcntl.flock, []

def late(*arguments):  # after the lock's file was opened, and before it is locked
    if not waited:
        waited.append(True)
        print("opened", flush=True)
        sys.stdin.readline()
    return flock(*arguments)

fcntl.flock = late
try:
    with one_writer(Path(sys.argv[1])):
        print("held", flush=True)
except InputError as error:
    print(f"refused: {error}", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="only POSIX lets a file be removed that is open")
def test_a_waiter_for_a_lock_that_was_removed_does_not_hold_it_beside_a_third(tmp_path: Path) -> None:
    """The waiter is a process of its own, stopped where it has opened the file that the first holder then removes."""
    pool, pipe = tmp_path / "pool", subprocess.PIPE
    command = [sys.executable, "-c", WAITER, str(pool)]
    with one_writer(pool):
        waiter = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "opened\n"
    with one_writer(pool):
        said, errors = waiter.communicate("go\n", timeout=300)
    assert said.startswith("refused: ") and f"process {os.getpid()} " in said, (said, errors)
    assert list(tmp_path.iterdir()) == []
