"""Images of a new task that come in a zip: only images, only below one folder, only so many; or nothing."""

import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from intarsia.data.files import is_image
from intarsia.errors import InputError, first_line
from intarsia.labels import check_name
from intarsia.progress import Progress, silent
from intarsia.store.files import writing

FILES = 5_000
"""Files in a zip, at most."""


ONE, ALL = 64 * 2**20, 2 * 2**30
"""Bytes of one image and of all, unpacked, at most."""


DEEP = 4
"""Folders that an image may lie in."""


BLOCK = 2**20


def unpacked(archive: Path, folder: Path, progress: Progress = silent) -> Path:
    """The images of a zip in a new folder, which is there whole or not at all; returns where their classes are.

    What is no image is left out. Names are not trusted: none leads out of the folder. Nor are the sizes that the zip
    tells: what is written is counted.

    Args:
        archive: the zip.
        folder: that is made.
        progress: told of the files done.

    Raises:
        InputError: it is no zip, has too many files or bytes, a name that leads elsewhere, or no image; nothing is
            left of it.
    """
    if folder.exists():
        raise InputError(f"{folder.name} is there already: give the task another name")
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = list(_members(opened))
            with writing(folder):
                _write(opened, members, fresh, progress)
                fresh.rename(folder)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever becomes of bytes that anybody may have made
        raise InputError(
            f"{archive.name} cannot be unpacked ({first_line(error)}): expected a plain zip of <class>/<image>"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return inner(folder)


def inner(folder: Path) -> Path:
    """The folder with the classes: below one that holds nothing else, say of the zip's own name."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if len(entries) == 1 and entries[0].is_dir() and any(inside.is_dir() for inside in entries[0].iterdir()):
        return inner(entries[0])
    return folder


def _members(opened: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The images of a zip, and where each goes.

    Raises:
        InputError: too many files or bytes, or a name that leads elsewhere.
    """
    entries = [entry for entry in opened.infolist() if not entry.is_dir()]
    if len(entries) > FILES:
        raise InputError(f"the zip has {len(entries):,} files: expected at most {FILES:,}; name a folder for more")
    total = found = 0
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if (
            not path.parts
            or path.is_absolute()
            or ".." in path.parts
            or ":" in path.parts[0]
            or stat.S_ISLNK(entry.external_attr >> 16)
        ):
            raise InputError(f"the zip has {entry.filename[:100]!r} in it, which leads elsewhere: pack plain folders")
        if len(path.parts) > DEEP + 1:
            raise InputError(
                f"the zip has {entry.filename[:100]!r}, {len(path.parts)} folders deep: expected <class>/<image>"
            )
        if not is_image(path.name) or any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        for part in path.parts:
            check_name("File", part)
        total, found = total + entry.file_size, found + 1
        if entry.file_size > ONE or total > ALL:
            raise InputError(
                f"the zip unpacks to more than {ONE >> 20} MiB in one image or {ALL >> 30} GiB in all: expected less"
            )
        yield entry, path
    if not found:
        raise InputError("the zip has no images: expected <class>/<image>, .png, .jpg or alike")


def _write(
    opened: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, PurePosixPath]], folder: Path, progress: Progress
) -> None:
    total = 0
    for number, (entry, path) in enumerate(members, start=1):
        target = folder.joinpath(*path.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with opened.open(entry) as source, target.open("xb") as file:
            while block := source.read(BLOCK):
                size, total = size + len(block), total + len(block)
                if size > ONE or total > ALL:
                    raise InputError(f"{entry.filename[:100]!r} unpacks to more than the zip says: not unpacked")
                file.write(block)
        progress("unpacking", number, len(members))
