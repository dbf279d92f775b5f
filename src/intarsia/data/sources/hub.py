"""A data set of a hub, or a local folder of one (Parquet and alike), through the library ``datasets``.

    hf:<name or folder>[@revision][?config=<name>][:<image column>,<label column>]

A configuration (the hub's "subset") is named where there are several. Which columns hold images and labels, which
splits train and test, and the classes' names are found in its description. Images are decoded here, from the bytes in
the table, as those of files are.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from intarsia.backbones.libraries.hub import offline_if_unreachable, reachable
from intarsia.backbones.locations import hub_parts, is_folder
from intarsia.data.files import ImageFile, Row
from intarsia.data.sources.listing import PARTS, Listing, of_labels
from intarsia.data.sources.source import SIDES, Asked, Side, Source
from intarsia.errors import InputError, first_line, not_installed
from intarsia.labels import listed

LABELS = ("label", "labels", "fine_label", "class", "classes", "category", "target", "y")
"""What a column of labels is called, where its type does not tell, or several have it."""


def open_hub(where: str, asked: Asked) -> Source:
    """A data set as a source.

    Raises:
        InputError: ``datasets`` is not installed, there is no such data set, or its columns or splits are not clear.
    """
    asked_for = hub_parts(where)
    place = asked_for.place
    parts = _load(place, asked_for.revision, asked_for.config)
    first = next(iter(parts.values()))
    image, label = _columns(f"hf:{where}", first.features, asked_for.columns)
    found = {PARTS[name.lower()]: part for name, part in parts.items() if name.lower() in PARTS}
    if "train" not in found:
        if len(parts) > 1:
            raise InputError(f"'{place}' has the splits {listed(parts)}: expected train among them.")
        found["train"] = first
    tested = "test" if "test" in found else "validation"
    notes = [f"the test images are those of split {tested!r}"] if tested in found and tested != "test" else []
    unused = [name for name, part in parts.items() if part not in (found["train"], found.get(tested))]
    notes += [f"left out: the splits {listed(unused)}"] if unused else []
    if asked_for.revision and not is_folder(place) and not reachable():
        notes.append(f"the hub cannot be reached: this is what its cache has, be it {asked_for.revision} or another")
    files: dict[Side, dict[str, list[ImageFile]]] = {"train": {}, "test": {}}
    for side in SIDES:
        split = "train" if side == "train" else tested
        if split in found:
            lacking = _gather(f"{place}, {split}", found[split], image, label, files[side])
            notes += [f"left out: {lacking} images of split {split!r} without a label"] if lacking else []
    return Listing(asked_for.name, place, files, "a split named test", notes).source(asked)


def _load(place: str, revision: str | None, config: str | None) -> dict[str, Any]:
    """Split -> its table."""
    try:
        import datasets  # noqa: PLC0415  an extra
    except ImportError as error:
        raise not_installed(f"hf:{place}", "datasets", "hf", error) from error
    try:
        with _asking(place):
            found = datasets.load_dataset(place, config, revision=revision)
    except Exception as error:  # of the hub, the network, the files or the disk
        known = _configs(place, revision)
        if known and config not in known and (config or len(known) > 1):
            lacks = f"no configuration {config!r}; there are" if config else "several configurations:"
            at = f"hf:{place}@{revision}" if revision else f"hf:{place}"
            example = urlencode({"config": known[0]})
            raise InputError(f"{at} has {lacks} {listed(known)}. Name one, for example {at}?{example}") from error
        reason = first_line(error)
        raise InputError(
            f"hf:{place} cannot be loaded ({reason}): expected a data set's name on the hub, or a folder of Parquet "
            "files. Look at the name, the network, or the folder."
        ) from error
    return {str(name): part for name, part in found.items()}


def _asking(place: str) -> AbstractContextManager[None]:
    """The hub is asked only for what is no folder, and if it can be reached."""
    return nullcontext() if is_folder(place) else offline_if_unreachable()


def _configs(place: str, revision: str | None) -> list[str]:
    """The configurations of a data set; none if they cannot be had."""
    import datasets  # noqa: PLC0415

    try:
        with _asking(place):
            return datasets.get_dataset_config_names(place, revision=revision)
    except Exception:  # what went wrong is told already
        return []


def _columns(spec: str, features: Mapping[str, Any], named: Sequence[str]) -> tuple[str, str]:
    """The columns of images and of labels."""
    import datasets  # noqa: PLC0415

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or _holds_bytes(kind)]
    by_type = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = [name for name in by_type or features if name.lower() in LABELS]
    if by_type and len(labels) != 1:
        labels = by_type
    wanted = [*named, "", ""][:2]

    def one(what: str, given: str, candidates: Sequence[str]) -> str:
        if given in features:
            return given
        if len(candidates) == 1 and not given:
            return candidates[0]
        found = f"no column {given!r}" if given else f"{'several columns' if candidates else 'no column'} of {what}s"
        raise InputError(
            f"{spec} has {found}: its columns are {listed(features)}. Name those of images and labels, for example "
            f"{spec.removesuffix(':' + ','.join(named))}:{(images or ['image'])[0]},{(labels or ['label'])[0]}"
        )

    return one("image", wanted[0], images), one("label", wanted[1], labels)


def _holds_bytes(kind: Any) -> bool:
    """Whether a column's type is that of encoded images without saying so."""
    return isinstance(kind, dict) and {"bytes", "path"} <= kind.keys()


def _gather(name: str, table: Any, image: str, label: str, into: dict[str, list[ImageFile]]) -> int:
    """Put a table's rows to their classes; how many have no label."""
    import datasets  # noqa: PLC0415

    kind = table.features[label]
    values = list(table[label])
    encoded = table.select_columns([image])
    if isinstance(table.features[image], datasets.Image):
        encoded = encoded.cast_column(image, datasets.Image(decode=False))
    listed_classes = isinstance(kind, datasets.ClassLabel)
    unknown = (None, -1) if listed_classes else (None,)
    known = [index for index, value in enumerate(values) if value not in unknown]
    rows = [Row(f"{name}, row {index}", partial(_bytes, encoded, image, index)) for index in known]
    of_labels(rows, [str(kind.int2str(values[i]) if listed_classes else values[i]) for i in known], into)
    return len(values) - len(known)


def _bytes(table: Any, column: str, index: int) -> bytes:
    """The encoded image of a row."""
    found = table[index][column]
    if found.get("bytes") is not None:
        return found["bytes"]
    return Path(found["path"]).read_bytes() if found.get("path") else b""
