"""A folder of images: classes, and their files to train and to test.

Either `<dir>/train/<class>/*` and `<dir>/test/<class>/*`, where nothing else in `<dir>` is read, or `<dir>/<class>/*`
and the fraction that is held out to test. Hidden files are ignored; any other file that is not an image is an error.
Nothing is searched deeper than that, so links that lead back upwards do no harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intarsia.data.files import is_image
from intarsia.data.image_set import ImageSet
from intarsia.data.sources.arrays import labels_of
from intarsia.data.sources.source import SIDES, Side, Source
from intarsia.data.splits import hold_out
from intarsia.errors import InputError

_CLUTTER = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ImageFolder:
    """What lies in a folder of images; files of a class are looked for when they are asked for."""

    name: str
    classes: tuple[str, ...]
    folders: Mapping[Side, Mapping[str, Path]]
    """Of each side its class folders, by class."""
    test_fraction: float | None
    """Where both sides have the same folders: the part of a class that is to test."""
    seed: int

    @classmethod
    def open(cls, root: Path, test_fraction: float | None, seed: int) -> "ImageFolder":
        """Find the classes of a folder, in the order of their names.

        Raises:
            InputError: There is no such folder, it has no classes, or which images are to test is said twice or never.
        """
        if not root.is_dir():
            raise InputError(f"'{root}': there is no such folder. Expected one with <class>/<image> in it.")
        if _has_sides(root):
            if test_fraction is not None:
                found = f"'{root}' has test images and a test fraction of {test_fraction} is given"
                raise InputError(f"{found}: expected one of the two. Leave the fraction out.")
            train, test = _class_folders(root / "train"), _class_folders(root / "test")
        else:
            train = test = _class_folders(root)
            if test_fraction is None:
                raise InputError(
                    f"'{root}' does not say which images are to test: expected a test fraction (for example 0.2), or "
                    f"<class>/<image> in '{root / 'train'}' and in '{root / 'test'}'."
                )
        classes = tuple(sorted({*train, *test}))
        return cls(root.resolve().name, classes, {"train": train, "test": test}, test_fraction, seed)

    def files(self, side: Side, kind: str) -> list[Path]:
        """The images of a class to train or to test, in the order of their names.

        Raises:
            InputError: The class has no folder or no images on that side, or a file that is not an image.
        """
        if kind not in self.folders[side]:
            other = "test" if side == "train" else "train"
            raise InputError(f"Class {kind!r} of {self.name!r} is in {other} but not in {side}: expected it in both.")
        files = _images(self.folders[side][kind])
        if self.test_fraction is None:
            return files
        train, test = hold_out(len(files), self.test_fraction, f"test/{self.seed}/{kind}", kind)
        return [files[index] for index in (train if side == "train" else test)]


def _has_sides(root: Path) -> bool:
    """Whether a folder has `train` and `test` with classes in them; a class may be named `train` itself."""
    present = [side for side in SIDES if any(entry.is_dir() for entry in _visible(root / side))]
    if len(present) == 1:
        missing = next(side for side in SIDES if side not in present)
        raise InputError(f"'{root}' has classes in '{present[0]}', but none in '{missing}': expected the same in both.")
    return bool(present)


def _class_folders(root: Path) -> dict[str, Path]:
    folders = {}
    for entry in _visible(root):
        if not entry.is_dir():
            raise InputError(
                f"'{entry}' lies outside a class folder: expected {root}/<class>/<image>. Move or remove it."
            )
        folders[entry.name] = entry
    if not folders:
        raise InputError(f"'{root}' has no images: expected {root}/<class>/<image>.")
    return folders


def _images(folder: Path) -> list[Path]:
    files = _visible(folder)
    for file in files:
        if not is_image(file):
            raise InputError(f"'{file}' is not an image by its name: expected .png, .jpg or alike. Move or remove it.")
        if not file.is_file():
            raise InputError(f"'{file}' is a folder, a broken link or a device: expected an image. Move or remove it.")
    if not files:
        raise InputError(f"'{folder}' has no images: expected some. Add them or remove the folder.")
    return files


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names, but for hidden files; nothing if there is no such folder."""
    if not folder.is_dir():
        return []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"'{folder}' cannot be read: {error.strerror}.") from error
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER]


def open_folder(where: str, test_fraction: float | None, seed: int) -> Source:
    """A folder of images as a source.

    Raises:
        InputError: see ``ImageFolder.open``.
    """
    folder = ImageFolder.open(Path(where).expanduser(), test_fraction, seed)

    def gather(side: Side, kinds: Sequence[str], limit: int | None) -> ImageSet:
        chosen = [folder.files(side, kind)[:limit] for kind in kinds]
        return ImageSet.of_files([file for files in chosen for file in files], labels_of(map(len, chosen)))

    return Source(folder.name, folder.classes, None, "photo", gather)
