"""Compose: a slider per module, presets, undo; what it does to every task, at once."""

import shlex
import time
from collections.abc import Sequence
from functools import partial

import gradio as gr
from markupsafe import Markup

from intarsia.errors import InputError
from intarsia.studio import draw
from intarsia.studio.composition import Composition
from intarsia.studio.messages import notice, told
from intarsia.studio.places.overview import FIGURED, advance, gaps_of
from intarsia.studio.places.sliders import Step, controls_of
from intarsia.studio.session import Session


def build(session: Session, seen: gr.State, history: gr.State) -> None:
    """The place; its controls are made anew when ``seen`` changes."""
    safe = told(session.pool.path.parent, session.models)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):

            @gr.render(inputs=seen, triggers=[seen.change])
            def sliders(state: str) -> None:
                if state:
                    controls_of(session, safe, history, shown, partial(_shown, session))

        with gr.Column(scale=3, min_width=300):
            shown = gr.HTML(elem_id="composed", elem_classes="live")
            with gr.Row():
                whole = gr.Button("Measure on all test images", size="md", elem_id="measure-whole")
                gaps = gr.Button("Measure the theorem's gaps", size="md", elem_id="measure-composed-gaps")
            more = gr.HTML(elem_id="more")
            with gr.Row(equal_height=True, elem_classes="save"):
                name = gr.Textbox(
                    interactive=True, label="Name of the model", value="composed", max_lines=1, scale=2, min_width=160
                )
                save = gr.Button("Save as model", size="md", scale=1, min_width=120, elem_id="save")

    def on_all(steps: list[Step], progress: gr.Progress = gr.Progress()) -> Markup:  # noqa: B008
        return _whole(session, _last(session, steps).composed, progress)

    def on_training(steps: list[Step], progress: gr.Progress = gr.Progress()) -> Markup:  # noqa: B008
        return gaps_of(session, _last(session, steps).composed, advance(progress))

    def saved(steps: list[Step], called: str) -> None:
        session.save(session.model(_last(session, steps).composed), called)
        notice(f"Saved as {called}, in the folder {session.models.name} of the pool.")

    def begun(_: str) -> tuple[list[Step], Markup]:
        step = Step.mean(session)
        return [step], _shown(session, step)

    history.change(lambda: "", None, more, show_progress="hidden")
    seen.change(safe(begun), seen, [history, shown], show_progress="minimal")
    whole.click(safe(on_all), history, more)
    gaps.click(safe(on_training), history, more)
    save.click(safe(saved), [history, name], None)


def _last(session: Session, steps: Sequence[Step]) -> Step:
    return steps[-1] if steps else Step.mean(session)


def _shown(session: Session, step: Step) -> Markup:
    """What a composition is worth, beside the mean."""
    composed = step.composed
    if not composed.answers:
        raise InputError('no task answers: tick one or more under "Tasks that answer"')
    began = time.perf_counter()
    found, mean = session.measured(composed), session.measured(session.mean()).evaluation
    took = time.perf_counter() - began
    now = found.evaluation
    before = session.accuracy(mean, now.tasks)
    assert before is not None
    coefficients = dict(composed.weights)
    rows = [
        (
            task,
            "rule" if composed.rule else f"{coefficients[task]:.2f}",
            accuracy,
            draw.change(accuracy, mean.per_task[task]),
        )
        for task, accuracy in now.per_task.items()
    ]
    parts = [
        draw.figures(
            {
                "Class-incremental accuracy": (
                    f"{now.final_accuracy:.1f} %",
                    Markup("{} against the mean").format(draw.change(now.final_accuracy, before)),
                ),
                "Within the image's own task": (f"{now.task_il_accuracy:.1f} %", "its task is given"),
            }
        ),
        draw.table(
            "Accuracy per task, in percent, and the change against the mean of all modules.",
            ("task", "coefficient", "accuracy", "change"),
            rows,
        ),
    ]
    if 1 < len(now.tasks) <= FIGURED:
        parts.append(
            draw.heat(
                "Which task is taken for which: percent of a row's images that are answered with a class of the "
                "column's task.",
                now.tasks,
                found.taken_for,
                "{:.0f}",
                100.0,
                "image of",
                "answered as",
            )
        )
    typed = command(session.pool.path.name, composed)
    parts.append(
        draw.note(
            f"{now.images} test images, {session.per_class} of each class, always the same; {took:.1f} s."
            + (f" The same on the command line: {typed}" if typed else "")
        )
    )
    return Markup("").join(parts)


def command(pool: str, composed: Composition) -> str | None:
    """What measures a composition on all test images, outside of the page; None if no command does."""
    if composed.rule is not None:
        whole = len(composed.answers) == len(composed.weights)
        return shlex.join(["intarsia", "evaluate", pool, "--rule", composed.rule]) if whole else None
    named = composed.named
    some = ["--answer", *composed.answers] if named.keys() != set(composed.answers) else []
    coefficients = [f"{task}={w:.4g}" for task, w in named.items()]
    return shlex.join(["intarsia", "evaluate", pool, "--weights", *coefficients, *some])


def _whole(session: Session, composed: Composition, progress: gr.Progress) -> Markup:
    few = session.measured(composed).evaluation
    found = session.measured_whole(composed, advance(progress)).evaluation
    rows = [(task, few.per_task[task], accuracy) for task, accuracy in found.per_task.items()]
    rows.append(("all", few.final_accuracy, found.final_accuracy))
    rows.append(("within the task", few.task_il_accuracy, found.task_il_accuracy))
    return draw.table(
        f"Accuracy in percent on the sample ({few.images} images) and on all {found.images} test images.",
        ("task", "sample", "all test images"),
        rows,
    )
