"""Specs of backbones and streams: the one built in, and where the files lie that a spec names.

A spec may end in a path: ``timm/<name>@<file>``, ``folder:<dir>``.

In memory such a path is absolute, so that the working directory does not matter. On disk it is relative to the folder
of the pool (or merged model) that names it where it lies below or beside that folder, so that both can be moved
together; else it is absolute.
"""

import os
from pathlib import Path


def absolute(spec: str, base: Path | None = None) -> str:
    """A spec with its path, if it has one, made absolute: relative ones start at ``base`` (the working directory)."""
    head, path = _parted(spec)
    return head + str(((base or Path()) / path).resolve()) if path else spec


def kept(spec: str, folder: Path) -> str:
    """A spec as the pool or merged model in a folder keeps it; ``absolute(kept, folder)`` is the inverse."""
    head, path = _parted(absolute(spec))
    home = folder.resolve()
    if not path or not Path(path).is_relative_to(home.parent):
        return head + path
    return head + Path(os.path.relpath(path, home)).as_posix()


def _parted(spec: str) -> tuple[str, str]:
    """A spec before and from where its path begins; no path: all of it is before."""
    for start, before in (("folder:", "folder:"), ("timm/", "@")):
        if spec.startswith(start) and before in spec:
            head, mark, path = spec.partition(before)
            return head + mark, path
    return spec, ""
