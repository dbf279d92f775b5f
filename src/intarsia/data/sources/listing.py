"""Images in files or in rows of tables: what folders, lists and data sets of a hub have in common."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from intarsia.data.decoding import what_is_wrong
from intarsia.data.files import FileHashes, ImageFile
from intarsia.data.image_set import ImageSet
from intarsia.data.sources.arrays import labels_of
from intarsia.data.sources.source import Asked, Side, Source
from intarsia.data.splits import held_out_by_hash
from intarsia.errors import InputError
from intarsia.labels import listed, natural, normal

PARTS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
"""What the parts of data sets are called, in lower case."""


@dataclass(frozen=True)
class Listing:
    """The images of every class, to train and to test.

    Args:
        name: of the source.
        where: it is, for messages.
        files: of each side, class -> its images; the test side is empty where a part is to be held out.
        remedy: how test images would be given in such a source, in words.
        notes: what was left out.
    """

    name: str
    where: str
    files: Mapping[Side, Mapping[str, Sequence[ImageFile]]]
    remedy: str
    notes: list[str] = field(default_factory=list)

    def source(self, asked: Asked) -> Source:
        """The source, whose test images are there or are held out by what is in them.

        Raises:
            InputError: it has no classes, or which images are to test is said twice or never.
        """
        held, sides = asked.test_fraction, self.files
        if sides["test"] and held is not None:
            raise InputError(
                f"'{self.where}' has test images and a test fraction of {held} is given: expected one of the two. "
                "Leave the fraction out."
            )
        if not sides["test"] and held is None:
            raise InputError(
                f"'{self.where}' does not say which images are to test: expected a test fraction (for example "
                f"--source.test-fraction 0.2), or {self.remedy}."
            )
        hashes = FileHashes()

        @cache
        def readable(side: Side, kind: str) -> Sequence[ImageFile]:
            return self._readable(sides[side][kind], skip=asked.skip_broken)

        def of(side: Side, kind: str) -> Sequence[ImageFile]:
            if held is None:
                return readable(side, kind)
            files = readable("train", kind)
            kept = held_out_by_hash([hashes.of(file) for file in files], held, f"test/{asked.seed}", kind)
            return [files[index] for index in kept[side == "test"]]

        def gather(side: Side, kinds: Sequence[str], limit: int | None) -> ImageSet:
            if held is None:
                self._check_sides(kinds)
            chosen = [of(side, kind)[:limit] for kind in kinds]
            return ImageSet.of_files([file for files in chosen for file in files], labels_of(map(len, chosen)))

        classes = tuple(sorted({*sides["train"], *sides["test"]}, key=natural))
        return Source(self.name, classes, None, "photo", gather, self.notes)

    def _readable(self, files: Sequence[ImageFile], *, skip: bool) -> Sequence[ImageFile]:
        """Those that can be read, the others noted; or all, if nothing is to be skipped."""
        for file in files if not skip else ():
            if isinstance(file, Path) and not file.is_file():  # a pipe would be waited for
                raise InputError(
                    f"'{file}' is not there, or is a folder, a broken link or a device: expected an image. Move or "
                    "remove it, or leave out what cannot be read with --skip-broken."
                )
        wrong = what_is_wrong(files) if skip else {}
        self.notes.extend(f"left out: {why}" for why in wrong.values())
        return [file for file in files if file not in wrong]

    def _check_sides(self, kinds: Collection[str]) -> None:
        """That classes are on both sides; naming all that are not."""
        train, test = self.files["train"], self.files["test"]
        if all(kind in train and kind in test for kind in kinds):
            return
        lone = {
            "in train but not in test": train.keys() - test.keys(),
            "in test but not in train": test.keys() - train.keys(),
        }
        noted = "; ".join(self.notes)
        found = "; ".join(f"{where}: {listed(sorted(names, key=natural))}" for where, names in lone.items() if names)
        raise InputError(
            f"'{self.where}' has classes {found}: expected the same in both{f' ({noted})' if noted else ''}. Add or "
            "rename them, or name the classes to use with --split."
        )


def of_labels(
    files: Sequence[ImageFile], labels: Sequence[str], into: dict[str, list[ImageFile]] | None = None
) -> dict[str, list[ImageFile]]:
    """Class -> its files, of files and the class of each; names that look alike are one class."""
    found: dict[str, list[ImageFile]] = {} if into is None else into
    for file, label in zip(files, labels, strict=True):
        found.setdefault(normal(label), []).append(file)
    return found
