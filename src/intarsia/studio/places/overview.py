"""Pool: a row per module, the cosines between them, and the theorem's two gaps."""

from dataclasses import asdict

import gradio as gr
from markupsafe import Markup

from intarsia.data.stream import Task
from intarsia.progress import Progress
from intarsia.report.pictures import samples
from intarsia.store.card import Influence
from intarsia.studio import composition as compositions
from intarsia.studio import draw
from intarsia.studio.composition import Composition
from intarsia.studio.messages import told
from intarsia.studio.session import Session

FIGURED = 24
"""Tasks of which the square of cosines is drawn; of more it would not be read."""


def build(session: Session, seen: gr.State) -> None:
    """The place, filled whenever ``seen`` changes."""
    safe = told(session.pool.path.parent)
    modules = gr.HTML(elem_id="modules")
    with gr.Accordion("How far do the task vectors agree?", open=True):
        cosines = gr.HTML(elem_id="cosines")
    with gr.Accordion("Theorem 1: is the mean better than the modules on average?", open=True):
        gr.HTML(
            draw.note(
                "The loss of the composed model is set beside the mean loss of its modules, on training images. The "
                "gap between them is positive where composing helps; the Fisher predicts it to second order."
            )
        )
        measure = gr.Button("Measure the gaps", size="md", elem_id="measure-gaps")
        gaps = gr.HTML(elem_id="gaps")

    seen.change(safe(lambda _: _modules(session)), seen, modules, show_progress="minimal")
    seen.change(safe(lambda _: (_cosines(session), "")), seen, [cosines, gaps], show_progress="minimal")

    def measured(progress: gr.Progress = gr.Progress()) -> Markup:  # noqa: B008  gradio finds it by its default
        return gaps_of(session, compositions.mean(session.tasks), advance(progress))

    measure.click(safe(measured), None, gaps)


def advance(progress: gr.Progress) -> Progress:
    """Gradio's bar as this package's progress."""

    def report(phase: str, done: int, total: int) -> None:
        progress((done, total), desc=phase)

    return report


def gaps_of(session: Session, composition: Composition, progress: Progress) -> Markup:
    """The theorem's numbers on a composition."""
    found = session.gaps(composition, progress)
    return draw.figures(
        {
            "True gap": (f"{found.true:.4f}", "nats per image: mean loss of the modules − loss of the composition"),
            "Predicted gap": (f"{found.predicted:.4f}", "by the diagonal Fisher, to second order"),
            "Loss of the composition": (f"{found.composed:.4f}", f"on {found.images} training images"),
            "Mean loss of its modules": (f"{found.modules:.4f}", "each module alone, by its coefficient"),
        }
    )


def _modules(session: Session) -> Markup:
    mean = session.measured(session.mean()).evaluation
    lengths, _ = session.alignment()
    rows = [
        (
            task.name,
            session.alone(task.name),
            mean.per_task[task.name],
            f"{lengths[task.name]:.2f}",
            _samples(session, task),
            _saw(session.pool.card(task.name).influenced_by),
        )
        for task in session.sample
    ]
    return draw.table(
        f"Modules of the pool. Accuracy in percent on a sample of {session.images} test images, {session.per_class} of "
        "each class.",
        ("task", "alone, its own classes", "in the mean, all classes", "length of τ", "classes", "what it saw"),
        rows,
        "modules",
    )


def _saw(influence: Influence) -> str:
    """What of which other tasks a module saw, in words."""
    ways: dict[tuple[str, ...], list[str]] = {}
    for way, tasks in asdict(influence).items():
        if tasks:
            ways.setdefault(tuple(tasks), []).append(way)
    named = {tasks: ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks" for tasks in ways}
    return "; ".join(f"{', '.join(found)} of {named[tasks]}" for tasks, found in ways.items()) or "no other task"


def _samples(session: Session, task: Task) -> Markup:
    found = samples(task, session.pool.backbone.preprocessing)
    shown = Markup("").join(draw.image(source, name) for name, source in found)
    return Markup('<div class="samples">{}</div><small>{}</small>').format(shown, ", ".join(task.classes))


def _cosines(session: Session) -> Markup:
    lengths, cosines = session.alignment()
    if len(lengths) > FIGURED:
        return draw.note(f"{len(lengths)} modules are too many for a square of cosines.")
    return draw.heat(
        "Cosine between task vectors: 1 is the same direction, 0 none in common.",
        [*lengths],
        cosines,
        "{:.2f}",
        1.0,
        "task",
        "task",
    )
