"""Results as a person reads them: the modules of a pool, an evaluation, a diagnosis, a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from intarsia.console import facts, table
from intarsia.evaluation.metrics import Evaluation
from intarsia.evaluation.theorem import Diagnosis
from intarsia.pool import Pool
from intarsia.store.card import Card
from intarsia.study.paper import TOLERANCE, Preset
from intarsia.study.summary import COLUMNS, LEGEND, cells


def modules(pool: Pool, cards: Sequence[Card]) -> None:
    """A row a module of a pool."""
    rows = [
        (
            c.task,
            len(c.classes),
            c.images,
            c.settings["method"],
            100 * c.measures["relative_norm"],
            ", ".join(c.classes),
        )
        for c in cards
    ]
    title = f"{pool.path}: {len(cards)} modules of {pool.adapter} on {pool.index.backbone['name']}"
    table(title, ("task", "classes", "images", "method", "|tau|/|theta0| %", "class names"), rows)


def evaluation(title: str, found: Evaluation, frozen: Evaluation | None) -> None:
    """Each task when it was learned, now, and with the backbone untouched; and the figures over all of them.

    Args:
        title: of the table.
        found: what was measured.
        frozen: the backbone untouched; None where it is not at hand (a merged model).
    """
    per_task, untouched = (frozen.per_task, frozen.final_accuracy) if frozen else ({}, None)
    rows: list[tuple[object, ...]] = []
    for j, (task, accuracy) in enumerate(found.per_task.items()):
        rows.append((task, found.when_learned[j], accuracy, per_task.get(task)))
    rows.append(("all test images", None, found.final_accuracy, untouched))
    note = "Accuracy in percent, all classes of these tasks competing; frozen: the backbone untouched, best heads."
    table(title, ("task", "when learned", "now", "frozen"), rows, note)
    facts(
        {
            "final accuracy (class-incremental)": found.final_accuracy,
            "final forgetting": found.final_forgetting,
            "average incremental accuracy": found.average_incremental_accuracy,
            "within the image's own task": found.task_il_accuracy,
            "frozen head": untouched,
        }
    )


def diagnosis(found: Diagnosis, of: str = "") -> None:
    """Losses and vectors of the modules alone, and Jensen's gap of their composition; ``of`` which pool."""
    rows = [
        (t, f"{x:.4f}", f"{n:.4f}", f"{c:.3f}")
        for t, x, n, c in zip(
            found.tasks, found.module_losses, found.vector_norms, found.cosine_to_composed, strict=True
        )
    ]
    note = (
        "Losses: nats an image, under the aligned heads of all classes. |tau|: length of the task vector; |g|: of the "
        "loss's gradient. A diagonal Fisher leaves out what weights do together, all but the whole one what layers do "
        "together, that of layers nothing else; --figures draws the whole one over scales."
    )
    table(f"Modules alone {of}".rstrip(), ("task", "loss", "|tau|", "cosine to the composed vector"), rows, note)
    facts(theorem(found))


def theorem(found: Diagnosis) -> dict[str, object]:
    """The figures of Theorem 1 by name."""
    return {
        "loss at theta0": f"{found.theta0_loss:.4f}",
        "loss of the composed model": f"{found.composed_loss:.4f}",
        "mean loss of the modules": f"{found.mean_module_loss:.4f}",
        "true gap": f"{found.true_gap:.4f}",
        "gap predicted by the diagonal Fisher": f"{found.predicted_gap:.4f}",
        **{f"gap to second order, {name} Fisher": f"{x:.4f}" for name, x in found.predicted_gaps.items()},
        "remainder": f"{found.remainder:.4f}",
        "|g| at theta0, random heads": f"{found.gradient_norm_before:.4f}",
        "|g| at theta0, aligned heads": f"{found.gradient_norm:.4f}",
        "images": found.images,
    }


def presets(cells: Sequence[Preset]) -> None:
    """A row a cell of the paper's table."""
    rows = [
        (
            p.name,
            f"{p.data.tasks}, {p.data.classes}",
            f"{p.strength:g}",
            p.training.epochs,
            f"{p.expected:.2f}",
            p.source,
        )
        for p in cells
    ]
    note = (
        f"FA: the paper's, mean of three runs; `presets verify` allows {TOLERANCE:g} point around it. Settings: from "
        "the paper, or ours where it gives none."
    )
    table("", ("preset", "tasks, classes", "strength", "epochs", "FA %", "settings"), rows, note)


def comparison(rows: Sequence[Mapping[str, Any]]) -> None:
    """A row a method."""
    table("", ("method", *COLUMNS), [cells(row) for row in rows], LEGEND)


def plan(rows: Sequence[Mapping[str, Any]], jobs: int) -> None:
    """A row per method: runs to make, runs that are there, and minutes; and those of all together."""
    table("", ("method", "to make", "there", "minutes"), [tuple(row.values()) for row in rows])
    minutes = sum(row["minutes"] for row in rows)
    told = {"runs to make": sum(row["runs"] for row in rows), "minutes, one after another": minutes}
    facts(told | ({f"minutes, {jobs} at once, each with its own cores": minutes / jobs} if jobs > 1 else {}))


def verification(found: Mapping[str, Any]) -> None:
    """Print what ``verify`` found."""
    if found["damaged"]:
        table("", ("damaged", "what is lost with it"), [(d["file"], d["lost"]) for d in found["damaged"]])
    names = {key: ", ".join(found[key]) or "none" for key in ("modules", "unnamed")}
    told = {"modules": names["modules"], "in the folder only": names["unnamed"]}
    facts({"files": found["files"], "damaged": len(found["damaged"]), **told})
