"""The model card of a pool or composed model: what its record says, as Markdown with the hub's header."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment

from intarsia.backbones.locations import published
from intarsia.errors import InputError
from intarsia.merging.model import read_card
from intarsia.store.card import Card
from intarsia.store.index import INDEX, Index
from intarsia.store.store import Store

TEXT = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
    """---
library_name: intarsia
pipeline_tag: image-classification
tags: [intarsia, image-classification, model-merging]
{% if licence %}
license: {{ licence }}
{% endif %}
---
# {{ repository }}

{{ kind }} of intarsia: {{ tasks }} tasks, {{ classes }} classes, on the backbone `{{ backbone }}` (SHA-256
`{{ hash }}`). {{ composition }}

{% for line in table %}
{{ line }}
{% endfor %}

{{ accuracy }}
Licence: {{ licence or "none is named" }}.

```
intarsia pull {{ repository }} --out {{ name }}
intarsia predict {{ name }} photo.jpg
```

```python
from intarsia import {{ maker }}

model = {{ maker }}.{{ opened }}
print(model.predict(["photo.jpg"]))
```
"""
)


def model_card(
    folder: Path, repository: str, *, evaluation: Mapping[str, Any] | None = None, licence: str | None = None
) -> str:
    """The README.md of a repository.

    Args:
        folder: of the pool, or composed model.
        repository: ``user/name``.
        evaluation: what ``intarsia evaluate --json`` said of it.
        licence: as the hub names it.

    Raises:
        InputError: the evaluation is no such record.
    """
    name = repository.rpartition("/")[2]
    accuracies, final = ({}, None) if evaluation is None else _accuracies(evaluation)
    pool = (folder / INDEX).is_file()
    return TEXT.render(
        kind="A pool of modules" if pool else "A composed model",
        repository=repository,
        name=name,
        licence=licence,
        maker="Pool" if pool else "ComposedModel",
        opened=f'open("{name}").mean()' if pool else f'load("{name}")',
        accuracy="" if final is None else f"Accuracy on all test images, all classes competing: {final:.1f} %.",
        **(_pool(folder, accuracies) if pool else _model(folder, accuracies)),
    )


def _accuracies(evaluation: Mapping[str, Any]) -> tuple[dict[str, float], float]:
    """Of each task at the end, and on all classes; percent.

    Raises:
        InputError: the record is another.
    """
    try:
        last = evaluation["accuracy_matrix"][-1]
        each = {str(task): float(value) for task, value in zip(evaluation["tasks"], last, strict=False)}
        return each, float(evaluation["final_accuracy"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            "the evaluation has no tasks, accuracy_matrix and final_accuracy: expected what `intarsia evaluate --json` "
            "prints"
        ) from error


def _pool(folder: Path, accuracies: Mapping[str, float]) -> dict[str, Any]:
    store = Store(folder, Index.read(folder))
    about, cards = store.index.backbone, [store.card(task) for task in store.tasks]
    rows = [
        (card.task, ", ".join(card.classes), card.images, card.stream.get("name", ""), _influence(card))
        for card in cards
    ]
    adapter, settings = store.index.adapter, store.index.settings
    rank = f", rank {adapter['rank']}" if "rank" in adapter else ""
    how = f"{adapter['kind']}{rank}, {settings.get('method')} of strength {settings.get('strength')}"
    return {
        "tasks": len(cards),
        "classes": sum(len(card.classes) for card in cards),
        "backbone": published(str(about["name"])),
        "hash": str(about["hash"])[:12],
        "composition": f"Task vectors: {how}.",
        "table": _table(("task", "classes", "images", "from", "influenced by"), rows, accuracies),
    }


def _model(folder: Path, accuracies: Mapping[str, float]) -> dict[str, Any]:
    card = read_card(folder)
    recipe, streams = card["recipe"], card["streams"]
    rows = [
        (task, ", ".join(names), f"{recipe['weights'].get(task, 0):g}", streams.get(task, {}).get("name", ""))
        for task, names in card["classes"].items()
    ]
    return {
        "tasks": len(rows),
        "classes": sum(map(len, card["classes"].values())),
        "backbone": published(str(recipe.get("backbone"))),
        "hash": str(recipe.get("backbone_hash"))[:12],
        "composition": f"Composition: {recipe.get('name')}, {recipe.get('heads')} heads.",
        "table": _table(("task", "classes", "weight", "from"), rows, accuracies),
    }


def _influence(card: Card) -> str:
    """What of which other tasks a module was influenced by, in words."""
    ways = {way: tasks for way, tasks in asdict(card.influenced_by).items() if tasks}
    return "; ".join(f"{way} of {', '.join(tasks)}" for way, tasks in ways.items()) or "no other task"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], accuracies: Mapping[str, float]) -> list[str]:
    """Lines of a table of Markdown, with the accuracy of each task where it is known."""
    if accuracies:
        head = (*head, "accuracy %")
        known = {task: f"{value:.1f}" for task, value in accuracies.items()}
        rows = [(*row, known.get(str(row[0]), "")) for row in rows]
    cells = [[str(cell).replace("|", r"\|").replace("<", "&lt;") for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]
