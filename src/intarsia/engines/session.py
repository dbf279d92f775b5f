"""Ray itself: joined or begun, and left as it was found."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from intarsia.errors import InputError, first_line, not_installed

TRIES = 10
"""How often a call whose worker died is made again."""
WAKES = 0.5
"""Seconds between two looks for a signal."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Of Ray's environment where nothing else is said: nobody is told that it is used, nor of what will change in it."""
NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}
"""Of a call's options -> what a cluster has."""


def library() -> Any:
    """Ray, quiet.

    Raises:
        InputError: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: PLC0415  optional, and slow to import
    except ImportError as error:
        raise not_installed("engine ray", "Ray", "ray", error) from error
    return ray


@contextmanager
def session(address: str | None, cpus: int, needs: Mapping[str, float]) -> Iterator[Any]:
    """Ray, running; what was begun for the block ends with it.

    Args:
        address: of a cluster that runs; None begins one on this machine.
        cpus: of the one that is begun.
        needs: of a call: ``num_cpus``, ``num_gpus``.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or it has no room for a call.
    """
    ray = library()
    if ray.is_initialized():
        _check_room(ray.cluster_resources(), needs)
        yield ray
        return
    # what Ray says of workers that died, it prints: standard output is for results
    with redirect_stdout(sys.stderr):
        try:
            with _own_signals(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    **({} if address else {"num_cpus": cpus}),
                )
            _check_room(ray.cluster_resources(), needs)
            yield ray
        except (ConnectionError, ray.exceptions.RaySystemError, ValueError) as error:
            if ray.is_initialized():
                raise
            where, why = address or "this machine", first_line(error).rstrip(".")
            raise InputError(f"Ray at {where} cannot be had: {why}") from None  # nothing to go on with
        finally:
            ray.shutdown()


def result_of(ray: Any, reference: Any) -> Any:
    """What a call gave that has ended.

    Raises:
        InputError: its worker died more often than it is tried again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError:  # a fault of ours: its traceback is wanted
        raise
    except ray.exceptions.RayError as error:
        raise InputError(
            f"a worker of Ray died {TRIES + 1} times, or what it gave is lost ({first_line(error)})"
        ) from error


def _check_room(there: Mapping[str, float], needs: Mapping[str, float]) -> None:
    for option, count in needs.items():
        what = NAMES[option]
        if there.get(what, 0) < count:
            raise InputError(f"a worker needs {count:g} {what}, Ray has {there.get(what, 0):g}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """What this process does with signals stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
