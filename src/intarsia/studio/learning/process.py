"""A new task, learned in a process of its own: ``intarsia learn --add``, whose lock and checkpoint are the pool's.

The process does not end with the page, nor with the server if that is killed; whoever opens the studio then sees that
the pool is being written. An orderly end of the server stops it at its last epoch border.
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.labels import check_name
from intarsia.parallel.processes import alive
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.regularizers.records import build_regularizer
from intarsia.store.files import write_json, writing
from intarsia.store.lock import HOLDER, RUN, holder, one_writer
from intarsia.studio.learning.uploads import inner, unpacked
from intarsia.studio.session import Session
from intarsia.study.estimate import Estimate, estimate
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.fine_tuning import Configuration
from intarsia.training.recommended import Hyperparameters

HELD_OUT = 0.2
"""Of each class, where there are no test images."""


PATIENCE = 60.0
"""Seconds that a process has to stop."""


@dataclass(frozen=True)
class NewTask:
    """Images that can be learned.

    Args:
        name: of the task.
        folder: that has its classes.
        stream: of it.
        test_fraction: held out to test, where there are no test images.
    """

    name: str
    folder: Path
    stream: TaskStream
    test_fraction: float | None


@dataclass(frozen=True)
class Status:
    """How far the learning is.

    Args:
        running: by this server's process, or by another.
        ours: whether it is this server's.
        stopped: where a run stands that can be gone on with, in words; empty if none is.
        said: the last lines of what the process said.
        losses: per image, after each epoch of the task being learned.
        failed: our process has ended with an error: its last line.
        done: our process has ended well.
    """

    running: bool
    ours: bool = False
    stopped: str = ""
    said: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()
    failed: str = ""
    done: bool = False


class Learning:
    """The process that adds tasks to a session's pool.

    Args:
        session: whose pool.
        backbone: how the process finds theta0, if it is not where the pool says.
        folders: whether a folder of this machine may be named, or a zip only.
    """

    def __init__(self, session: Session, backbone: str | None = None, *, folders: bool = True) -> None:
        self._session, self._backbone, self.folders = session, backbone, folders
        self._process: subprocess.Popen[bytes] | None = None
        self._log = session.home / "learn.log"
        self._kept: set[Path] = set()

    @property
    def _pool(self) -> Path:
        return self._session.pool.path

    # What is learned

    def from_zip(self, archive: Path, name: str, progress: Progress = silent) -> NewTask:
        """A task of the images in a zip, which are kept in the pool's folder.

        Raises:
            InputError: the name or the zip is no good, or the pool has the task or one of its classes; nothing is kept.
        """
        check_name("task", name)
        self._session.pool.check_new(name, ())
        self._refuse()
        folder = self._session.home / "images" / name
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():  # it was looked at before, and not learned
                shutil.rmtree(folder)
        try:
            task = self._task(unpacked(archive, folder, progress), name)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._kept.add(folder)
        return task

    def from_folder(self, folder: Path, name: str) -> NewTask:
        """A task of the images in a folder of this machine.

        Raises:
            InputError: as ``from_zip``, or folders may not be named.
        """
        if not self.folders:
            raise InputError("this page is open to other machines, so no folder of this one can be named: drop a zip")
        check_name("task", name)
        if not folder.expanduser().is_dir():
            raise InputError(f"{folder.name!r}: there is no such folder; expected one with <class>/<image> in it")
        return self._task(inner(folder.expanduser().resolve()), name)

    def _task(self, folder: Path, name: str) -> NewTask:
        loaded, fraction = _loaded(folder)
        self._session.pool.check_new(name, loaded.classes)
        split = {name: list(loaded.classes)}
        stream = TaskStream.load(f"folder:{folder}", split=split, test_fraction=fraction)
        stream.decode(self._session.pool.backbone.preprocessing)
        return NewTask(name, folder, stream, fraction)

    def cost(self, task: NewTask, progress: Progress = silent) -> Estimate:
        """What learning a task will cost, from a few timed batches."""
        pool = self._session.pool
        chosen = Hyperparameters.from_records(pool.index.settings, pool.index.adapter)
        regularizer = build_regularizer(chosen.method, chosen.strength)
        how = Configuration(pool.adapter, regularizer, chosen.settings, task.stream.augmentation)
        with self._session.lock:
            return estimate(pool.backbone, task.stream, how, progress=progress)

    # The process

    def start(self, task: NewTask, epochs: int | None = None) -> None:
        """Begin to learn a task; with as many epochs as the pool's others if None.

        Raises:
            InputError: something is being learned, or a run was stopped that can be gone on with.
        """
        self._refuse()
        split = self._session.home / f"{task.name}.json"
        with writing(split):
            self._session.home.mkdir(parents=True, exist_ok=True)
        write_json({task.name: list(task.stream[0].classes)}, split)
        flags = ["--add", "--data", f"folder:{task.folder}", "--split", str(split)]
        flags += [] if task.test_fraction is None else ["--source.test-fraction", f"{task.test_fraction:g}"]
        flags += [] if epochs is None else ["--epochs", str(epochs)]
        self._begin(flags)

    def resume(self) -> None:
        """Go on with the run that was stopped.

        Raises:
            InputError: something is being learned.
        """
        self._refuse(stopped=False)
        self._begin(["--resume"])

    def give_up(self) -> None:
        """Forget the run that was stopped; whole tasks that it has learned stay.

        Raises:
            InputError: the pool is being written.
        """
        with one_writer(self._pool):
            Checkpoint.of(self._pool).end()

    def stop(self) -> None:
        """Stop our process at its last epoch border, and wait for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()  # which the command takes as Ctrl-C
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)

    def close(self) -> None:
        """Stop, and remove the images of zips that were looked at and not learned."""
        self.stop()
        if not self._kept or Checkpoint.of(self._pool).exists:
            return
        learned = Pool.open(self._pool).tasks
        for folder in self._kept:
            if folder.name not in learned:
                shutil.rmtree(folder, ignore_errors=True)
                (self._session.home / f"{folder.name}.json").unlink(missing_ok=True)

    def _refuse(self, *, stopped: bool = True) -> None:
        """Refuse while the pool is being written, and where a run was stopped that can be gone on with.

        Raises:
            InputError: which of the two.
        """
        if self.status().running:
            raise InputError(f"the pool is being written by {holder(self._pool)}: wait for it, or stop it there")
        if stopped and (checkpoint := Checkpoint.of(self._pool)).exists:
            raise InputError(f'a run was stopped {checkpoint.where()}: "Go on" with it, or "Give up", first')

    def _begin(self, flags: list[str]) -> None:
        command = [sys.executable, "-m", "intarsia", "learn", *flags, "--out", str(self._pool), "--run.no-evaluate"]
        command += [] if self._backbone is None else ["--backbone", self._backbone]
        with writing(self._log):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("wb")
        with log:  # a session of its own: Ctrl-C in the server's terminal is not its own
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def status(self) -> Status:
        """How far it is."""
        ours = self._process is not None and self._process.poll() is None
        said, checkpoint = self._said(), Checkpoint.of(self._pool)
        if ours or _held(self._pool):
            return Status(True, ours, said=said, losses=tuple(checkpoint.losses()))
        code = None if self._process is None else self._process.returncode
        failed = said[-1].removeprefix("intarsia: ") if code == 2 and said else ""
        if checkpoint.exists:
            losses = tuple(checkpoint.losses())
            return Status(False, stopped=checkpoint.where(), said=said, losses=losses, failed=failed)
        if code != 0:
            return Status(False, said=said, failed=failed)
        return Status(False, said=said, done=True, losses=tuple(self._learned_losses()))

    def _learned_losses(self) -> list[float]:
        """Of the newest module."""
        pool = Pool.open(self._pool)
        return [float(loss) for loss in pool.card(pool.tasks[-1]).measures.get("losses", ())]

    def _said(self) -> tuple[str, ...]:
        with suppress(OSError):
            return tuple(line for line in self._log.read_text(errors="replace").splitlines() if line)[-6:]
        return ()


def _loaded(folder: Path) -> tuple[TaskStream, float | None]:
    """The images of a folder; a fifth is held out to test where there are no test images."""
    try:
        return TaskStream.load(f"folder:{folder}"), None
    except InputError as error:
        if "test fraction" not in str(error):
            raise
    return TaskStream.load(f"folder:{folder}", test_fraction=HELD_OUT), HELD_OUT


def _held(pool: Path) -> bool:
    """Whether a living process of this machine says that it writes the pool."""
    try:
        return alive(int(json.loads((pool / RUN / HOLDER).read_text())["process"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def progress_of(said: tuple[str, ...]) -> str:
    """The last line of a process that says how far it is, in words."""
    for line in reversed(said):
        if found := re.fullmatch(r"(.+): (\d+) of (\d+)", line):
            return f"{found[1]}: {found[2]} of {found[3]}"
        if re.fullmatch(r".+: ([\d.]+ s|done)", line):
            return f"{line.rpartition(':')[0]} done"
    return "starting"
