"""JSON as files of users and pools may hold it: every key once, numbers that are numbers."""

import json
from typing import Any

LARGEST_JSON = 64 * 2**20
"""Bytes. A hundred thousand classes take a tenth of it."""


def parse_json(data: bytes | str) -> Any:
    """JSON whose objects have every key once, and whose numbers are numbers.

    Raises:
        ValueError: it is not.
        RecursionError: it is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{key!r} twice in one object: expected each key once")
            found[key] = value
        return found

    def number(text: str) -> float:
        raise ValueError(f"{text} is not a number")

    return json.loads(data, object_pairs_hook=once, parse_constant=number)
