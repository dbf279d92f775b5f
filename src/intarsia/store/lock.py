"""One writer: a lock on a pool's folder, held by the system for the life of a process.

A process that dies lets go of it, however it dies. Readers need no lock (see ``store``).
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from intarsia.errors import InputError
from intarsia.store.files import writing
from intarsia.strict_json import parse_json

RUN = ".run"
"""Folder in the pool's with what belongs to a run that is not finished."""


LOCK, HOLDER = "lock", "holder.json"


PATIENCE = 0.5
"""Seconds until a lock counts as held by another."""


@contextmanager
def one_writer(folder: Path) -> Iterator[Path]:
    """Be the only writer of a folder while the block runs; the value is ``<folder>/.run``.

    Folders made for it are removed again if nothing was put there.

    Raises:
        InputError: another process is writing; who, and since when.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    run = folder / RUN
    lock = _acquired(run)
    try:
        holder = {"process": os.getpid(), "machine": platform.node(), "since": _now()}
        with writing(run / HOLDER):
            (run / HOLDER).write_text(json.dumps(holder))
        yield run
    finally:
        for name in (HOLDER, LOCK):  # while it is still held: who comes next makes a lock of their own
            with suppress(OSError):
                (run / name).unlink()
        lock.release()
        for path in (run, *made):
            with suppress(OSError):
                path.rmdir()


def holder(folder: Path) -> str:
    """Who holds the lock of a folder, as far as they said."""
    try:
        who = parse_json((folder / RUN / HOLDER).read_bytes())
        return f"process {who['process']} on {who['machine']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _acquired(run: Path) -> FileLock:
    lock, deadline = FileLock(run / LOCK), time.monotonic() + PATIENCE
    while True:
        with writing(run):
            run.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
                return lock
            except FileNotFoundError:  # the one before has just taken the folder away
                pass
            except Timeout:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{run.parent} is being written by {holder(run.parent)}: wait for it, or name another folder"
                    ) from None
        time.sleep(0.02)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
