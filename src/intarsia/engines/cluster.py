"""What an engine needs of a cluster: put bytes there, call a worker's methods, wait for what they give."""

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, Protocol

from intarsia.engines.staging import Staging
from intarsia.errors import InputError


class Cluster(Protocol):
    """Workers that do a job (``worker.Job``)."""

    def put(self, data: bytes) -> Any:
        """Bytes that workers may be given, as a reference."""
        ...

    def get(self, reference: Any) -> bytes:
        """What a reference stands for.

        Raises:
            InputError: the worker's own, or it died more often than it is tried again.
        """
        ...

    def call(self, method: str, *arguments: Any) -> Any:
        """Have a method of ``Worker`` called, references replaced by their bytes; a reference to what it gives."""
        ...

    def wait(self, references: Sequence[Any]) -> Any:
        """One of the references whose result is there, or whose worker has failed."""
        ...


Key = tuple[int, str]
"""Of a result: the task's number, and the worker's method."""


class Calls:
    """Calls of workers' methods, so many at once, those for earlier tasks first; their results are kept.

    Args:
        cluster: of the workers.
        staging: where results are kept.
        most: calls that are under way at once; any number if None.
    """

    def __init__(self, cluster: Cluster, staging: Staging, most: int | None = None) -> None:
        self._cluster, self._staging, self._most = cluster, staging, most
        self._waiting: list[tuple[int, int, str, tuple[Any, ...]]] = []
        self._asked = 0
        self._running: dict[Any, Key] = {}
        self._found: deque[Key] = deque()
        self._results: dict[Key, Any] = {}
        self._failed: dict[Key, InputError] = {}

    def ask(self, number: int, method: str, *arguments: Any) -> None:
        """Have a method called for a task, unless what it gives is there from before."""
        if (data := self._staging.find(number, method)) is not None:
            self._results[number, method] = self._cluster.put(data)
            self._found.append((number, method))
            return
        self._asked += 1
        heappush(self._waiting, (number, self._asked, method, arguments))
        self._start()

    def next(self) -> Key:
        """Wait for a result, whichever comes first, and keep it in the run's folder.

        Raises:
            InputError: it cannot be written there. What the worker raised, ``data`` raises.
        """
        if self._found:
            return self._found.popleft()
        reference = self._cluster.wait(list(self._running))
        key = self._running.pop(reference)
        self._start()
        try:
            data = self._cluster.get(reference)
        except InputError as error:
            self._failed[key] = error
            return key
        self._results[key] = reference
        self._staging.keep(*key, data)
        return key

    def has(self, number: int, method: str) -> bool:
        """A result is there, or an error in its place."""
        return (number, method) in self._results or (number, method) in self._failed

    def failed(self, number: int, method: str) -> bool:
        """There is an error in place of a result."""
        return (number, method) in self._failed

    def reference(self, number: int, method: str) -> Any:
        """A result that is there, to be given to another method."""
        return self._results[number, method]

    def data(self, number: int, method: str) -> bytes:
        """A result that is there.

        Raises:
            InputError: what the worker raised.
        """
        if (error := self._failed.get((number, method))) is not None:
            raise error
        return self._cluster.get(self._results[number, method])

    def drop(self, number: int) -> None:
        """Forget the results of a task; what is in the run's folder stays."""
        for key in [key for key in self._results if key[0] == number]:
            del self._results[key]

    def _start(self) -> None:
        while self._waiting and (self._most is None or len(self._running) < self._most):
            number, _, method, arguments = heappop(self._waiting)
            self._running[self._cluster.call(method, *arguments)] = number, method
