"""Unlearn: one task dropped or negated; what it costs that task and the others, and who saw something of it."""

from functools import partial

import gradio as gr
from markupsafe import Markup

from intarsia.merging.model import ComposedModel
from intarsia.studio import draw
from intarsia.studio.messages import notice, told
from intarsia.studio.places.overview import advance
from intarsia.studio.session import Session

DROP, NEGATE = "Drop: the mean of the others, its classes gone", "Negate: subtract its vector, all classes stay"
AMOUNTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


def build(session: Session, seen: gr.State) -> None:
    """The place."""
    safe = told(session.pool.path.parent, session.models)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            task = gr.Dropdown(
                [*session.tasks],
                value=session.tasks[0],
                interactive=True,
                label="Task to unlearn",
                elem_id="unlearn-task",
            )
            how = gr.Radio([DROP, NEGATE], value=NEGATE, interactive=True, label="How", elem_id="unlearn-how")
            amount = gr.Slider(
                0,
                1,
                value=0.5,
                step=0.05,
                interactive=True,
                label="How much of its vector to subtract (λ)",
                elem_id="amount",
            )
            draw_it = gr.Button("Draw the curve", size="md", elem_id="draw-curve")
            with gr.Row(equal_height=True, elem_classes="save"):
                name = gr.Textbox(
                    interactive=True,
                    label="Name of the model without it",
                    value="unlearned",
                    max_lines=1,
                    scale=2,
                    min_width=160,
                )
                export = gr.Button("Export", size="md", scale=1, min_width=120, elem_id="export")
        with gr.Column(scale=3, min_width=300):
            shown = gr.HTML(elem_id="unlearned", elem_classes="live")
            drawn = gr.HTML(elem_id="curve")
            seen_by = gr.HTML(elem_id="influenced")

    def measured(target: str, lam: float) -> Markup:
        return _measured(session, target, lam)

    def curve(target: str, lam: float, progress: gr.Progress = gr.Progress()) -> Markup:  # noqa: B008
        return _curve(session, target, lam, progress)

    def exported(target: str, mode: str, lam: float, called: str) -> None:
        session.save(_model(session, target, mode, lam), called)
        notice(f"Exported as {called}, in the folder {session.models.name} of the pool.")

    inputs = [task, amount]
    amount.input(safe(measured), inputs, shown, trigger_mode="always_last", show_progress="hidden")
    task.change(safe(measured), inputs, shown, trigger_mode="always_last", show_progress="hidden")
    task.change(safe(lambda target: (_influenced(session, target), "")), task, [seen_by, drawn], show_progress="hidden")
    how.change(lambda mode: gr.update(visible=mode == NEGATE), how, amount, show_progress="hidden")
    draw_it.click(safe(curve), inputs, drawn)
    export.click(safe(exported), [task, how, amount, name], None)

    def filled(_: str, target: str, lam: float) -> tuple[object, ...]:
        target = target if target in session.tasks else session.tasks[0]
        return (
            gr.update(choices=[*session.tasks], value=target),
            _measured(session, target, lam),
            _influenced(session, target),
        )

    seen.change(safe(filled), [seen, *inputs], [task, shown, seen_by], show_progress="hidden")


def _model(session: Session, task: str, mode: str, amount: float) -> ComposedModel:
    pool = session.pool
    return pool.unlearn(task) if mode == DROP else pool.unlearn(task, mode="negate", scale=amount)


def _sides(session: Session, task: str, mode: str, amount: float) -> tuple[float | None, float | None]:
    """Accuracy on the task, and on the others; None where the model has no class left."""
    key = ("unlearned", task, mode, amount if mode == NEGATE else None)
    found = session.of_model(key, partial(_model, session, task, mode, amount)).evaluation
    return found.per_task.get(task), session.accuracy(found, [t for t in found.tasks if t != task])


def _measured(session: Session, task: str, amount: float) -> Markup:
    whole = _sides(session, task, NEGATE, 0.0)
    rows = [("the mean of all modules", *whole)]
    rows.append((f"{task} negated, λ = {amount:.2f}", *_sides(session, task, NEGATE, amount)))
    if len(session.tasks) > 1:
        rows.append((f"{task} dropped", *_sides(session, task, DROP, 0.0)))
    return draw.table(
        f"Accuracy in percent on {session.images} test images; a dash where no class is left.",
        ("model", task, "other tasks"),
        rows,
    )


def _curve(session: Session, task: str, amount: float, progress: gr.Progress) -> Markup:
    told_of, share = advance(progress), session.mean().weights[0][1]
    sides = []
    for number, lam in enumerate(AMOUNTS, start=1):
        sides.append((share - lam, *_sides(session, task, NEGATE, lam)))
        told_of("compositions", number, len(AMOUNTS))
    sides.reverse()
    lines = {task: [(x, own or 0.0) for x, own, _ in sides], "other tasks": [(x, c or 0.0) for x, _, c in sides]}
    return draw.curve(
        f"Accuracy over the coefficient of {task}, from its share in the mean, {share:.2f}, down; all classes compete.",
        lines,
        f"coefficient of {task}",
        "accuracy, %",
        limits=(0.0, 100.0),
        at=share - amount,
    )


def _influenced(session: Session, task: str) -> Markup:
    found = session.pool.influenced_by(task)
    if not found:
        return draw.note(f"No other module saw anything of {task} while it was learned.")
    rows = [(other, ", ".join(ways)) for other, ways in found.items()]
    return draw.table(
        f"Still influenced by {task}: what other modules saw of it while they were learned.",
        ("module", "saw its"),
        rows,
        "words",
    )
