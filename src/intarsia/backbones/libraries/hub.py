"""Whether the hub can be reached: asked first, so that a machine without a network is told so at once."""

import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import urlsplit

from huggingface_hub import constants

SECONDS = 5
"""Until nobody is thought to be there."""
KNOWN = 60
"""Seconds."""


def reachable() -> bool:
    """Whether a connection to the hub can be opened; behind a proxy that is not asked. Known for a minute."""
    return _reachable(int(time.monotonic() / KNOWN))


@lru_cache(1)
def _reachable(_: int) -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    there = urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    try:
        port = there.port or (80 if there.scheme == "http" else 443)
        with socket.create_connection((there.hostname or "", port), timeout=SECONDS):
            return True
    except OSError:
        return False


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """The hub's library looks into its cache alone where there is no network: its own tries take a minute."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
