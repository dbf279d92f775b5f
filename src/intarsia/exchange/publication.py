"""What leaves this machine of a pool or composed model: its files, without the paths that only this machine has.

A card says where the images of its task were, an index where the backbone's weights: of an absolute path the last part
stays. ``pool.json`` has the hashes of the cards as they are pushed, so that what is pulled is whole.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intarsia.backbones.locations import published
from intarsia.store.card import located
from intarsia.store.files import Seen, as_json, read_json
from intarsia.store.index import INDEX, MERGED


@dataclass(frozen=True)
class Publication:
    """What is pushed of a folder.

    Args:
        folder: of the pool or model.
        names: its files.
        changed: those that are pushed otherwise than they stand.
        places: what was replaced in them: then -> now.
    """

    folder: Path
    names: tuple[str, ...]
    changed: dict[str, bytes]
    places: dict[str, str]

    def file(self, name: str) -> Path | bytes:
        """What is pushed under a name."""
        return self.changed.get(name, self.folder / name)


def publication(folder: Path, names: Collection[str]) -> Publication:
    """Of a pool or composed model whose files were checked.

    Args:
        folder: of it.
        names: its files.
    """
    places, changed = dict[str, str](), dict[str, bytes]()

    def place(spec: str) -> str:
        if (shown := published(spec)) != spec:
            places[spec] = shown
        return shown

    if INDEX in names:
        index = read_json(folder / INDEX)
        index["backbone"]["name"] = place(index["backbone"]["name"])
        for name in (name for name in names if name.endswith("/card.json")):
            card = read_json(folder / name)
            if (shown := _card(card, place)) != card:
                changed[name] = as_json(shown)
                index["files"][name] = asdict(Seen.of(changed[name]))
        whole = {INDEX: index}
    else:
        card = read_json(folder / MERGED)
        recipe = card["recipe"]
        if recipe.get("backbone"):
            recipe["backbone"] = place(recipe["backbone"])
        whole = {MERGED: {**card, "streams": {t: located(s, place) for t, s in card["streams"].items()}}}
    if places:
        changed |= {name: as_json(record) for name, record in whole.items()}
    return Publication(folder, tuple(names), changed, places)


def _card(card: dict[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    settings, imported = card["settings"], card["settings"].get("imported", {})
    if imported.get("base"):
        settings = {**settings, "imported": {**imported, "base": place(imported["base"])}}
    return {**card, "settings": settings, "stream": located(card["stream"], place)}
