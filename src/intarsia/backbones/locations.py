"""Specs of backbones and streams: the one built in, and where the files lie that a spec names.

A spec may end in a path: ``timm/<name>@<file>``, ``folder:<dir>``, ``csv:<file>``, ``hf:<dir>``.

In memory such a path is absolute, so that the working directory does not matter. On disk it is relative to the folder
of the pool (or merged model) that names it where it lies below or beside that folder, so that both can be moved
together; else it is absolute.
"""

import os
from pathlib import Path


def absolute(spec: str, base: Path | None = None) -> str:
    """A spec with its path, if it has one, made absolute: relative ones start at ``base`` (the working directory)."""
    head, path = _parted(spec)
    return head + str(((base or Path()) / Path(path).expanduser()).resolve()) if path else spec


def kept(spec: str, folder: Path) -> str:
    """A spec as the pool or merged model in a folder keeps it; ``absolute(kept, folder)`` is the inverse."""
    head, path = _parted(absolute(spec))
    home = folder.resolve()
    if not path or not Path(path).is_relative_to(home.parent):
        return head + path
    relative = Path(os.path.relpath(path, home)).as_posix()
    return head + (relative if relative.startswith(".") else f"./{relative}")


def hub_parts(where: str) -> tuple[str, str | None, tuple[str, ...]]:
    """``<name or dir>[@revision][:<column>,<column>]`` apart: name or folder, revision, columns."""
    place, colon, tail = where.rpartition(":")
    if not colon or "/" in tail or "\\" in tail:
        place, tail = where, ""
    columns = tuple(part.strip() for part in tail.split(",")) if tail else ()
    if (there := Path(place).expanduser()).exists():
        return str(there), None, columns
    place, _, revision = place.partition("@")
    return place, revision or None, columns


def _parted(spec: str) -> tuple[str, str]:
    """A spec before and from where its path begins; no path: all of it is before."""
    for start, before in (("folder:", "folder:"), ("csv:", "csv:"), ("hf:", "hf:"), ("timm/", "@")):
        if spec.startswith(start) and before in spec:
            head, mark, path = spec.partition(before)
            if start == "hf:" and not path.startswith((".", "/", "~")) and not Path(hub_parts(path)[0]).exists():
                break  # a name on the hub
            return head + mark, path
    return spec, ""
