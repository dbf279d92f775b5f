"""A list of images: a CSV file with a header and the columns path, label and, where some are to test, split.

Paths are relative to the file. Columns are parted by commas, semicolons or tabs; others are not read.
"""

import csv
import io
from pathlib import Path

from intarsia.data.files import ImageFile
from intarsia.data.sources.listing import PARTS, Listing, of_labels
from intarsia.data.sources.source import SIDES, Asked, Side, Source
from intarsia.errors import InputError
from intarsia.labels import listed


def open_csv(where: str, asked: Asked) -> Source:
    """A list of images as a source.

    Raises:
        InputError: the file cannot be read, lacks a column, or a line lacks a value.
    """
    path = Path(where).expanduser()
    rows = _rows(path)
    files: dict[Side, dict[str, list[ImageFile]]] = {"train": {}, "test": {}}
    parts = [_part(path, number, row["split"]) if "split" in row else "train" for number, row in rows]
    tested = "test" if "test" in parts else "validation"
    notes = [f"the test images are those of split {tested!r}"] if tested in parts and tested != "test" else []
    if tested == "test" and "validation" in parts:
        notes.append("left out: the images of split 'validation', beside 'test'")
    for side in SIDES:
        part = "train" if side == "train" else tested
        chosen = [row for (_, row), of in zip(rows, parts, strict=True) if of == part]
        of_labels([path.parent / row["path"] for row in chosen], [row["label"] for row in chosen], files[side])
    return Listing(path.stem, str(path), files, f"a column 'split' with train and test in '{path}'", notes).source(
        asked
    )


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines of the file with their numbers; every value is there."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}. Expected a CSV file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 ({error.reason}): expected a CSV file in it. Convert it.") from error
    header = text.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), skipinitialspace=True
    )
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        lacking = [name for name in ("path", "label") if name not in names]
        if lacking:
            raise InputError(
                f"'{path}' has the columns {listed(names) or 'none'}: expected path, label and perhaps split in its "
                f"first line. Name {' and '.join(lacking)}."
            )
        rows = [
            (reader.line_num, {name: row[name] for name in ("path", "label", "split") if name in names})
            for row in reader
        ]
    except csv.Error as error:
        raise InputError(f"'{path}', line {reader.line_num}: {error}. Expected a CSV file.") from error
    for number, row in rows:
        for name, value in row.items():
            if not (value or "").strip():
                raise InputError(f"'{path}', line {number}, has no {name}: fill it in or remove the line.")
    if not rows:
        raise InputError(f"'{path}' names no image: expected lines below the first.")
    return [(number, {name: value.strip() for name, value in row.items()}) for number, row in rows]


def _part(path: Path, number: int, name: str) -> str:
    if name.lower() not in PARTS:
        raise InputError(f"'{path}', line {number}: split {name!r}: expected one of {', '.join(PARTS)}.")
    return PARTS[name.lower()]
