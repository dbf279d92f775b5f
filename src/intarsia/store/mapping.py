"""A pool as a mapping: task -> module, and what is shown of it."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from intarsia.errors import InputError
from intarsia.labels import some_of
from intarsia.store.module import Module
from intarsia.store.store import Store

SHOWN = 20
"""Tasks whose classes are counted when a pool is shown: each has a card to read."""


class StoredModules(Store, Mapping[str, Module]):
    """The modules of a store by task, in the order they were learned; each is read when it is asked for.

    Two are equal only if they are one object: an empty pool is false, a comparison reads nothing.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]  a mapping has none

    def __getitem__(self, task: str) -> Module:
        """The whole module of a task.

        Raises:
            UnknownTaskError: a KeyError too; the pool has no such task.
            InputError: a file of it is damaged.
        """
        return self.module(task)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __contains__(self, task: object) -> bool:
        return task in self.tasks

    def learned(self, only: Sequence[str] | None = None) -> tuple[str, ...]:
        """``tasks``, of a pool that has some; or some of them, in the pool's order.

        Raises:
            InputError: the pool has none, or not those; or none is chosen, or one twice.
        """
        if not self.tasks:
            raise InputError(f"{self.path} holds no module yet: learn a task first")
        return self.tasks if only is None else some_of(self.tasks, only)

    def __repr__(self) -> str:
        facts = self._facts()
        shown = ", ".join(f"{task} ({classes})" for task, classes in self._counts())
        made = ", ".join(f"{name} {what}" for name, what in facts.items())
        return f"{type(self).__name__}({str(self.path)!r}, {made}, {len(self)} tasks{': ' if shown else ''}{shown})"

    def _repr_html_(self) -> str:
        """For notebooks: a table; whatever the names hold is text."""
        made = "; ".join(f"{name} {what}" for name, what in self._facts().items())
        rows = "".join(f"<tr><td>{escape(task)}</td><td>{classes}</td></tr>" for task, classes in self._counts())
        head = "<thead><tr><th>task</th><th>classes</th></tr></thead>"
        caption = f"<caption>{escape(str(self.path))}: {escape(made)}</caption>"
        return f"<table>{caption}{head}<tbody>{rows}</tbody></table>"

    def _facts(self) -> dict[str, str]:
        """What all modules have in common, in words."""
        adapter, settings = self.index.adapter, self.index.settings
        rank = f" of rank {adapter['rank']}" if "rank" in adapter else ""
        return {
            "backbone": str(self.index.backbone["name"]),
            "method": f"{settings.get('method')} of strength {settings.get('strength')}",
            "adapter": f"{adapter['kind']}{rank}",
        }

    def _counts(self) -> Iterator[tuple[str, str]]:
        """Task -> how many classes it has, of the first tasks; what cannot be read is said."""
        for task in self.tasks[:SHOWN]:
            try:
                yield task, f"{len(self.card(task).classes)} classes"
            except InputError:
                yield task, "damaged"
        if len(self) > SHOWN:
            yield "...", f"{len(self) - SHOWN} tasks more"
