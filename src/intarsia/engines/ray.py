"""Ray: every task in a worker of its own, on this machine or on a cluster."""

import os
import uuid
from collections.abc import Collection, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.data.stream import TaskStream
from intarsia.engines.cluster import Calls
from intarsia.engines.parallel import Parallel
from intarsia.engines.session import TRIES, WAKES, library, result_of, session
from intarsia.engines.staging import Staging
from intarsia.engines.worker import Job, Worker
from intarsia.errors import InputError
from intarsia.parallel.processes import current
from intarsia.progress import Progress, silent
from intarsia.regularizers.protocol import Regularizer
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.fine_tuning import Configuration
from intarsia.training.settings import Settings, Training
from intarsia.training.state import LearnedTask, LearnerState


@dataclass(frozen=True)
class Ray:
    """Learn every task of a stream beside the others, each in a worker of Ray: ``learn(..., engine=Ray(workers=2))``.

    The modules are those of one process with ``fisher_over="others"``: on CPUs, bit for bit, where that has as many
    threads as a worker.

    Args:
        address: of a cluster that runs, ``auto`` for the one this machine is part of; None begins one on this machine,
            which ends with the run.
        workers: at once; as many as there is room for if None.
        gpus_per_worker: a part of one, one or more; 0 works on CPUs.
        threads: of torch in each worker, and of whatever is computed here meanwhile.

    Raises:
        InputError: a number out of range.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float = 0.0
    threads: int = 1

    def __post_init__(self) -> None:
        for flag, count in {"workers": self.workers, "threads": self.threads}.items():
            if count is not None and count < 1:
                raise InputError(f"{flag} {count}: expected 1 or more")
        if not 0 <= self.gpus_per_worker < float("inf"):
            raise InputError(f"gpus-per-worker {self.gpus_per_worker}: expected a number, 0 or more")

    def training(self, given: Training | None) -> Training:
        """A user's settings for this engine.

        Raises:
            InputError: modules are to know the Fishers of earlier tasks only.
        """
        return (given or Training()).over_others("engine ray")

    def check(self, regularizer: Regularizer, settings: Settings) -> None:
        """Refuse what cannot be learned in parallel, and where Ray is not installed.

        Raises:
            InputError: so.
        """
        if regularizer.through_mean:
            raise InputError(
                f"engine ray: {regularizer.kind} trains every module through those before it, one after another: use "
                "ita, or leave the engine out"
            )
        if settings.curvature == "ekfac" or settings.curvature_of == "reference":
            raise InputError(
                f"engine ray: curvature {settings.curvature} of {settings.curvature_of} starts in the first task, for "
                "which all others would wait: use --training.curvature diagonal or kfac, "
                "--training.curvature-of tasks, or leave the engine out"
            )
        if current().count > 1:
            raise InputError("engine ray: it starts its own processes: leave torchrun out")
        library()

    def learned_tasks(
        self,
        backbone: Backbone,
        stream: TaskStream,
        configuration: Configuration,
        state: LearnerState,
        *,
        known: Collection[str] = (),
        checkpoint: Checkpoint | None = None,
        progress: Progress = silent,
    ) -> Generator[LearnedTask]:
        """Learn the tasks that are not ``known``; the arguments are those of ``learner.learned_tasks``.

        Raises:
            InputError: there is no such cluster, or it has no room for a worker; or what a worker raised.
            DivergenceError: as for one process.
        """
        device = "cuda" if self.gpus_per_worker else "cpu"
        job = Job.of(backbone, stream, configuration, device=device, threads=self.threads)
        staging = Staging.of(checkpoint.folder if checkpoint and checkpoint.each_epoch else None)
        with self.started() as ray:
            cluster = RayCluster(ray, job, self.needs)
            calls = Calls(cluster, staging, self.workers)
            yield from Parallel(
                cluster, calls, backbone, stream, configuration, state, known, self.threads, progress
            ).learned_tasks()

    @property
    def needs(self) -> dict[str, float]:
        """Of a call, as Ray's options."""
        return {"num_cpus": self.threads, "num_gpus": self.gpus_per_worker}

    def started(self) -> AbstractContextManager[Any]:
        """Ray, running; what was begun for the block ends with it.

        Raises:
            InputError: it is not installed, there is no such cluster, or it has no room for a worker.
        """
        workers = self.workers or max(1, (os.cpu_count() or 1) // self.threads)
        return session(self.address, workers * self.threads, self.needs)


class RayCluster:
    """Workers of Ray.

    Args:
        ray: the library, initialized.
        job: what they work on.
        needs: of each call, as Ray's options.
    """

    def __init__(self, ray: Any, job: Job, needs: dict[str, float]) -> None:
        self._ray = ray
        self._key = uuid.uuid4().hex
        self._job = [ray.put(job)]  # in a list, Ray hands the reference on: a worker reads the job once
        self._remote = ray.remote(_work).options(max_retries=TRIES, **needs)

    def put(self, data: bytes) -> Any:
        """See ``Cluster``."""
        return self._ray.put(data)

    def get(self, reference: Any) -> bytes:
        """See ``Cluster``."""
        found = result_of(self._ray, reference)
        if isinstance(found, InputError):
            raise found
        return found

    def call(self, method: str, *arguments: Any) -> Any:
        """See ``Cluster``."""
        return self._remote.remote(self._key, self._job, method, *arguments)

    def wait(self, references: Sequence[Any]) -> Any:
        """See ``Cluster``."""
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(list(references), num_returns=1, timeout=WAKES)
        return ready[0]


_workers: dict[str, Worker] = {}
"""Of this process, if it is a worker: the run it works for -> what it has loaded."""


def _work(key: str, job: list[Any], method: str, *arguments: Any) -> bytes | InputError:
    """One call in a worker; bad input is given back, and not raised: Ray would dress it in its traceback."""
    if key not in _workers:
        _workers.clear()
        import_torchvision()  # before a network of timm is read
        _workers[key] = Worker(library().get(job[0]))
    try:
        return getattr(_workers[key], method)(*arguments)
    except InputError as error:
        return error
