"""Work shared between processes."""

import os


def asked_for() -> tuple[int, int]:
    """This process's number, from 0, and the count of all that torchrun has started; (0, 1) without it."""
    rank, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(count)) if rank.isdecimal() and count.isdecimal() else (0, 1)
