"""Merge rules from the literature, by name."""

from collections.abc import Sequence

from intarsia.errors import InputError
from intarsia.task_vector import TaskVector


def check_vectors(vectors: Sequence[TaskVector]) -> None:
    """Refuse to merge nothing.

    Raises:
        InputError: no vector is given.
    """
    if not vectors:
        raise InputError("no task vector to merge: expected one or more")
