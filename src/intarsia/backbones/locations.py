"""Specs of backbones and streams: options they carry, and where the files lie that a spec names.

A backbone's spec is ``<library>/<which>``, with ``@`` a file or revision and ``?`` options:
``timm/<name>@<file>?image-size=70&features=mean``. A data set's is ``hf:<name>?config=<name>:<columns>``. A spec may
end in a path: ``timm/<name>@<file>``, ``hf/<folder>``, ``timm/local-dir:<folder>``, ``folder:<dir>``, ``csv:<file>``,
``hf:<dir>``.

In memory such a path is absolute, so that the working directory does not matter. On disk it is relative to the folder
of the pool (or merged model) that names it where it lies below or beside that folder, so that both can be moved
together; else it is absolute.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from urllib.parse import parse_qsl, urlencode

from intarsia.errors import InputError

Features = Literal["cls", "mean", "pooled"]
"""The class token, the mean of the other tokens, or what the network's own pooling gives."""


@dataclass(frozen=True)
class Options:
    """How a network is loaded otherwise than its checkpoint says; None is the checkpoint's own way.

    Args:
        image_size: side of its images, pixels.
        features: what of its output the features are.

    Raises:
        InputError: a size below 1, or features that there are not.
    """

    image_size: int | None = None
    features: Features | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"--image-size {self.image_size}: expected 1 or more pixels")
        if self.features is not None and self.features not in get_args(Features):
            raise InputError(f"--features {self.features!r}: expected one of {', '.join(get_args(Features))}")

    def or_else(self, other: "Options") -> "Options":
        """What is open here as it is there."""
        return Options(self.image_size or other.image_size, self.features or other.features)


def parsed(spec: str) -> tuple[str, Options]:
    """A backbone's spec without its options, and these.

    Raises:
        InputError: an option that there is not.
    """
    name, given = _asked(spec)
    size = given.pop("image-size", None)
    if (size is not None and not size.isdecimal()) or given.keys() - {"features"}:
        raise InputError(f"backbone {spec!r}: expected options like ?image-size=70&features=mean")
    return name, Options(int(size) if size else None, given.get("features"))  # pyright: ignore[reportArgumentType]


def _asked(spec: str) -> tuple[str, dict[str, str]]:
    """A spec without the options behind its ``?``, and these by name; without a ``=`` they are none."""
    name, mark, text = spec.rpartition("?")
    return (name, dict(parse_qsl(text, keep_blank_values=True))) if mark and "=" in text else (spec, {})


def with_options(spec: str, options: Options) -> str:
    """A backbone's spec with options; those that the spec has already stay where ``options`` leaves them open.

    Raises:
        InputError: see ``Options``.
    """
    name, own = parsed(spec)
    chosen = options.or_else(own)
    given = {"image-size": chosen.image_size, "features": chosen.features}
    text = urlencode({key: value for key, value in given.items() if value is not None})
    return f"{name}?{text}" if text else name


DATA = ("folder:", "csv:", "hf:")
"""How specs of images begin that may name a path."""


def absolute(spec: str, base: Path | None = None) -> str:
    """A spec with its path, if it has one, made absolute: relative ones start at ``base`` (the working directory)."""
    head, path, options = _parted(spec, base or Path())
    return head + str(((base or Path()) / Path(path).expanduser()).resolve()) + options if path else spec


def kept(spec: str, folder: Path) -> str:
    """A spec as the pool or merged model in a folder keeps it; ``absolute(kept, folder)`` is the inverse."""
    head, path, options = _parted(absolute(spec), Path())
    home = folder.resolve()
    if not path or not Path(path).is_relative_to(home.parent):
        return head + path + options
    relative = Path(os.path.relpath(path, home)).as_posix()
    dotted = (
        relative if head not in ("hf/", "hf:") or relative.startswith("..") else f"./{relative}"
    )  # not one of the hub
    return head + dotted + options


def published(spec: str) -> str:
    """A spec as others may see it: of a path that only this machine has, its last part."""
    head, path, options = _parted(spec, Path())
    if not Path(path or spec).is_absolute():
        return spec
    name = Path(path or spec).name
    return (head if path else "") + (f"./{name}" if head in ("hf/", "hf:") else name) + options


class DataSet(NamedTuple):
    """A data set of a hub, or a folder of one: its name or folder, revision, configuration, and columns."""

    place: str
    revision: str | None = None
    config: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a stream of it is called."""
        return "-".join(filter(None, (Path(self.place).resolve().name, self.config)))


def hub_parts(where: str, base: Path | None = None) -> DataSet:
    """``<name or dir>[@revision][?config=<name>][:<column>,<column>]`` apart.

    Raises:
        InputError: an option that there is not.
    """
    place, colon, tail = where.rpartition(":")
    if not colon or "/" in tail or "\\" in tail:
        place, tail = where, ""
    columns = tuple(part.strip() for part in tail.split(",")) if tail else ()
    asked: dict[str, str] = {}

    def is_there() -> bool:
        return ((base or Path()) / Path(place).expanduser()).exists()

    if not is_there():
        place, asked = _asked(place)
    if asked.keys() - {"config"} or "" in asked.values():
        raise InputError(f"hf:{where}: expected the one option ?config=<name> before the columns")
    if is_there():
        return DataSet(str(Path(place).expanduser()), None, asked.get("config"), columns)
    place, _, revision = place.partition("@")
    return DataSet(place, revision or None, asked.get("config"), columns)


def _parted(spec: str, base: Path) -> tuple[str, str, str]:
    """A spec before and from where its path begins, and its options; no path: all of it is before."""
    for start in DATA:
        if spec.startswith(start):
            path = spec.removeprefix(start)
            local = start != "hf:" or is_folder(hub_parts(path, base).place, base)
            return (start, path, "") if local else (spec, "", "")
    for start, before in (("timm/local-dir:", "local-dir:"), ("timm/", "@"), ("hf/", "hf/")):
        if not spec.startswith(start) or before not in spec:
            continue
        name, mark, options = spec.rpartition("?")
        name, options = (name, mark + options) if mark and "=" in options else (spec, "")
        head, between, path = name.partition(before)
        if start == "hf/" and not is_folder(path, base):
            break  # of the hub
        return head + between, path, options
    return spec, "", ""


def is_folder(which: str, base: Path | None = None) -> bool:
    """Whether what stands behind ``hf/`` is a folder, and not a repository of the hub.

    A path that begins with ``/``, ``.`` or ``~``, or has more than one slash, is none of the hub; one like
    ``user/name`` is a folder if there is one.
    """
    return which.startswith(("/", ".", "~")) or which.count("/") > 1 or ((base or Path()) / which).is_dir()
