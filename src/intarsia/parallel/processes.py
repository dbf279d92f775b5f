"""Several processes that learn one module together, started by ``torchrun --nproc-per-node N -m intarsia learn ...``.

Every process holds all of the learner's state and takes the same steps; what is split between them is the work on
images: features, Fisher, and of every training batch the passes through the network. The first one leads: it alone
writes and speaks. Outside of ``together`` a process works alone.
"""

import atexit
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed

from intarsia.errors import InputError, LostProcessError
from intarsia.parallel import asked_for


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Args:
        rank: its number, from 0.
        count: of all.
        lives: of each, the host and the number that the system gave it.
    """

    rank: int = 0
    count: int = 1
    lives: Sequence[tuple[str, int]] = field(default=(), compare=False)

    @property
    def leads(self) -> bool:
        """It writes and speaks."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """No living process of its host has a lower number."""
        return not any(host == socket.gethostname() and alive(number) for host, number in self.lives[: self.rank])

    def rows(self, count: int, unit: int = 1) -> slice:
        """Its part of so many rows, in order; parts are cut at multiples of ``unit`` and differ by one unit at most."""
        units = -(-count // unit)
        first, last = (min(count, unit * (units * rank // self.count)) for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Put in the place of every tensor its sum over the processes: the same numbers in all of them."""
        if self.count == 1 or not (listed := list(tensors)):
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in listed])
        self._together(lambda: distributed.all_reduce(flat))
        for tensor, part in zip(listed, flat.split([tensor.numel() for tensor in listed]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def joined(self, own: Tensor, rows: slice, count: int) -> Tensor:
        """All rows (count, ...) of which every process has its own; with a graph, each gets the gradient of its own."""
        return own if self.count == 1 else _Joined.apply(own, rows, count, self)  # pyright: ignore[reportReturnType]

    def agree(self, value: bool) -> bool:
        """What the leading process says; all wait for it."""
        if self.count == 1:
            return value
        said = torch.tensor([int(value and self.leads)], device=_device())
        self.sum_([said])
        return bool(said.item())

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.agree(True)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every parameter the sum of what the processes' parts of a batch say."""
        if self.count == 1:
            return
        found = list(parameters)
        for parameter in found:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_(p.grad for p in found if p.grad is not None)

    def _together(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise LostProcessError(
                "another process of this run has ended, and all end with it: `intarsia learn --resume` goes on from "
                "the last epoch, with as many processes as you like",
                told=not self.speaks,
            ) from error


class _Joined(torch.autograd.Function):
    """Rows of all processes: what is not a process's own is zero there, and the sum of all is exact."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: slice, count: int, processes: Processes) -> Tensor:
        ctx.rows = rows
        whole = own.new_zeros(count, *own.shape[1:])
        whole[rows] = own
        processes.sum_([whole])
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        """Every process has the whole loss: the gradient of its rows is complete."""
        return gradient[ctx.rows], None, None, None


ALONE = Processes()
_current = ALONE


def current() -> Processes:
    """The processes that work together now."""
    return _current


@contextmanager
def together(processes: Processes) -> Iterator[Processes]:
    """In the block, the work on images is split between these processes."""
    global _current  # noqa: PLW0603
    before, _current = _current, processes
    try:
        yield processes
    finally:
        _current = before


def start() -> Processes:
    """Meet the other processes that torchrun has started; alone without it.

    Raises:
        InputError: they cannot be met.
    """
    _, count = asked_for()
    if count == 1:
        return ALONE
    if not distributed.is_initialized():
        try:
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the {count} processes of torchrun cannot meet: {error}") from error
        if torch.cuda.is_available():
            torch.cuda.set_device(_device())
        atexit.register(_leave)
    lives: list[Any] = [None] * count
    distributed.all_gather_object(lives, (socket.gethostname(), os.getpid()))
    return Processes(distributed.get_rank(), count, lives)


def _device() -> torch.device:
    """Where tensors lie that processes exchange."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def alive(number: int) -> bool:
    """Whether a process of this machine has not ended; one that waits to be collected has."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not ours to signal
        return True
    with suppress(OSError), open(f"/proc/{number}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return True


def _leave() -> None:
    with suppress(Exception):
        distributed.destroy_process_group()
