"""Runs of a comparison on this machine, each in a process that does not outlive the one which started it."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from intarsia.console import shown
from intarsia.errors import InputError
from intarsia.study.bench import Bench
from intarsia.study.runs import attempt

DIE_WITH_PARENT = 1
"""Of Linux's ``prctl``: PR_SET_PDEATHSIG."""


@dataclass(frozen=True)
class Processes:
    """Processes of this machine.

    Args:
        bars: whether a run may draw progress bars.
    """

    bars: bool
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _stopped: Event = field(default_factory=Event)
    _starting: Lock = field(default_factory=Lock)

    def run(self, bench: Bench, name: str, seed: int, into: Path, *, edits: bool) -> dict[str, Any]:
        """See ``Cells``."""
        job = {"bench": bench.record(), "name": name, "seed": seed, "folder": str(into), "parent": os.getpid()}
        job |= {"edits": edits}
        command = [sys.executable, "-c", "from intarsia.study.cells.process import child; child()"]
        with tempfile.TemporaryFile("w+") as complaints:
            with self._starting:
                if self._stopped.is_set():
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=None if self.bars else complaints,
                    text=True,
                )
                self._processes.append(process)
            with process:
                assert process.stdin is not None and process.stdout is not None
                with suppress(BrokenPipeError):  # it has ended already; its code says why
                    process.stdin.write(json.dumps(job) + "\n")
                    process.stdin.flush()
                out = process.stdout.read()  # its standard input stays open: when that ends, the run does too
                code_of = process.wait()
                with suppress(BrokenPipeError):
                    process.stdin.close()
            complaints.seek(0)
            complaint = complaints.read()
        if code_of < 0:
            raise InputError(
                f"{name}, seed {seed}: its process was killed by signal {-code_of}, perhaps for its memory: "
                "use fewer --jobs or a smaller --batch-size"
            )
        if code_of:
            raise RuntimeError(f"{name}, seed {seed}: its process ended with {code_of}\n{complaint}")
        return json.loads(out)

    def stop(self) -> None:
        """See ``Cells``."""
        with self._starting:
            self._stopped.set()
            for process in self._processes:
                process.terminate()


def child() -> None:
    """One run: a job as a line of JSON on standard input, what was measured as JSON on standard output.

    It ends when its parent does, however that is ended: by the system where it is Linux, and anywhere by watching
    standard input, which the parent holds open.
    """
    job = json.loads(sys.stdin.readline())
    _end_with(job["parent"])
    bench = Bench.from_record(job["bench"])
    with shown() as progress:
        found = attempt(bench, job["name"], job["seed"], Path(job["folder"]), progress, edits=job.get("edits", True))
    print(json.dumps(found))


def _end_with(parent: int) -> None:
    """Let this process end when its parent does."""
    if sys.platform == "linux" and (prctl := getattr(ctypes.CDLL(None), "prctl", None)):
        prctl(DIE_WITH_PARENT, int(signal.SIGKILL))
        if os.getppid() != parent:  # it was gone before that was asked for
            os._exit(1)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):  # beside Python's own buffer, whose lock would be held at the end
            pass
        os._exit(1)

    Thread(target=watch, daemon=True).start()
