"""A folder of images: classes, and their files to train and to test.

Either ``<dir>/train/<class>/*`` and ``<dir>/test/<class>/*`` (or val, valid, validation, dev), or ``<dir>/<class>/*``
and the fraction that is held out to test. Images in folders below a class are the class's. What is no image is left
out and named once; hidden files and what systems leave behind are left out in silence.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from intarsia.data.files import ImageFile, is_image
from intarsia.data.sources.listing import PARTS, Listing
from intarsia.data.sources.source import Asked, Side, Source
from intarsia.errors import InputError
from intarsia.labels import listed, normal

_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information")


@dataclass(frozen=True)
class _Aside:
    """What is come across and left out: what is no image, and class folders without one."""

    others: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)

    def notes(self, root: Path) -> list[str]:
        """In words."""
        told = {"left out, no images": self.others, "left out, folders without images": self.empty}
        named = {what: listed((str(path.relative_to(root)) for path in paths), 5) for what, paths in told.items()}
        return [f"{what}: {names}" for what, names in named.items() if names]


def open_folder(where: str, asked: Asked) -> Source:
    """A folder of images as a source.

    Raises:
        InputError: There is no such folder, it has no classes, an image lies outside a class, or which images are to
            test is said twice or never.
    """
    root, aside = Path(where).expanduser(), _Aside()
    if not root.is_dir():
        raise InputError(f"'{root}': there is no such folder. Expected one with <class>/<image> in it.")
    parts, notes = _parts(root), list[str]()
    files: dict[Side, dict[str, list[ImageFile]]] = {"train": _classes(parts.get("train", root), aside), "test": {}}
    tested = parts.get("test", parts.get("validation"))
    if tested is not None:
        files["test"] = _classes(tested, aside)
        if tested.name.casefold() != "test":
            notes.append(f"the test images are those in {tested.name!r}")
    if parts:
        aside.others.extend(entry for entry in _visible(root) if entry not in (parts["train"], tested))
    remedy = f"<class>/<image> in '{root / 'train'}' and in '{root / 'test'}'"
    return Listing(root.resolve().name, str(root), files, remedy, [*notes, *aside.notes(root)]).source(asked)


def _parts(root: Path) -> dict[str, Path]:
    """The folders `train`, `test`, `validation` of a folder that is divided so: there are folders in them.

    A class may be named `train` itself, with its images right in it.
    """
    found: dict[str, Path] = {}
    bare = set[str]()
    for entry in _visible(root):
        name = PARTS.get(entry.name.casefold())
        if name is None or not entry.is_dir():
            continue
        if not any(inner.is_dir() for inner in _visible(entry)):
            bare.add(name)
        elif name in found:
            names = f"'{found[name].name}' and '{entry.name}'"
            raise InputError(f"'{root}' has {names}, which mean the same: expected one of them. Move one away.")
        else:
            found[name] = entry
    lacking = "train" if found and "train" not in found else "test"
    if found and (lacking == "train" or (len(found) == 1 and "test" in bare)):
        here = found.get("train", next(iter(found.values()))).name
        raise InputError(f"'{root}' has classes in '{here}', but none in '{lacking}': expected the same in both.")
    return found


def _classes(root: Path, aside: _Aside) -> dict[str, list[ImageFile]]:
    """Class -> its files, of the class folders in a folder."""
    found: dict[str, list[ImageFile]] = {}
    for entry in _visible(root):
        if not entry.is_dir():
            if is_image(entry):
                raise InputError(
                    f"'{entry}' lies outside a class folder: expected {root}/<class>/<image>. Move or remove it."
                )
            aside.others.append(entry)
            continue
        images = list(_images(entry, {root.resolve(), *root.resolve().parents}, aside))
        if images:
            found.setdefault(normal(entry.name), []).extend(images)
        else:
            aside.empty.append(entry)
    if not found:
        raise InputError(f"'{root}' has no images: expected {root}/<class>/<image>.")
    return found


def _images(folder: Path, seen: set[Path], aside: _Aside) -> Iterator[Path]:
    """What are images by their names in a folder and below, in order; links that lead back are not followed."""
    there = folder.resolve()
    if there in seen:
        return
    seen.add(there)
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _images(entry, seen, aside)
        elif is_image(entry):
            yield entry
        else:
            aside.others.append(entry)


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names, but for hidden files and what systems leave behind."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"'{folder}' cannot be read: {error.strerror}.") from error
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER]
