"""Try: pictures, answered by the composition, by theta0's frozen head and by one specialist, side by side."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from markupsafe import Markup

from intarsia.data.decoding import decode
from intarsia.errors import InputError
from intarsia.merging.model import ComposedModel
from intarsia.report.pictures import picture
from intarsia.studio import draw
from intarsia.studio.messages import told, without_paths
from intarsia.studio.places.sliders import Step
from intarsia.studio.session import Session

MOST = 12
"""Pictures at a time."""


TOP = 3


def build(session: Session, seen: gr.State, history: gr.State) -> None:
    """The place."""
    safe = told(session.pool.path.parent, session.uploads)
    gr.HTML(
        draw.note(
            "Drop pictures of your own. Three models answer: what you composed, the backbone without any "
            "module, and the specialist of one task, which knows its own classes only."
        )
    )
    with gr.Row(equal_height=False):
        files = gr.File(label="Pictures", file_count="multiple", type="filepath", elem_id="pictures", height=150)
        with gr.Column():
            expert = gr.Dropdown(
                [*session.tasks], value=session.tasks[0], interactive=True, label="Specialist", elem_id="expert"
            )
            with gr.Accordion("Camera", open=False):
                camera = gr.Image(sources=["webcam"], type="filepath", format="png", label="Camera", buttons=[])
    answers = gr.HTML(elem_id="answers-of-models", elem_classes="live")

    def answered(steps: list[Step], named: list[str] | None, shot: str | None, task: str) -> Markup:
        paths = [*(named or []), *([shot] if shot else [])]
        if not paths:
            return Markup("")
        composed = session.model((steps[-1] if steps else Step.mean(session)).composed)
        models = {
            "Your composition": composed,
            "Frozen backbone": session.frozen(),
            f"Specialist of {task}": session.specialist(task),
        }
        return answers_of(session, models, [Path(path) for path in paths])

    inputs = [history, files, camera, expert]
    gr.on(
        [files.change, camera.change, expert.input, history.change],
        safe(answered),
        inputs,
        answers,
        trigger_mode="always_last",
        show_progress="minimal",
    )
    seen.change(lambda _: gr.update(choices=[*session.tasks]), seen, expert, show_progress="hidden")


def answers_of(session: Session, models: dict[str, ComposedModel], paths: Sequence[Path]) -> Markup:
    """A card per picture; what cannot be read is said in its place."""
    more = draw.note(f"The first {MOST} of {len(paths)} pictures.") if len(paths) > MOST else Markup("")
    paths = paths[:MOST]
    with session.lock:
        rows = {name: [row for _, row in model.read_and_answer(paths)] for name, model in models.items()}
    cards = Markup("")
    for place, path in enumerate(paths):
        said = Markup("")
        for name, model in models.items():
            row = rows[name][place]
            if isinstance(row, InputError):
                said = draw.alert(without_paths(str(row), session.uploads, path.parent))
                break
            best = row.topk(min(TOP, len(row)))
            found = [(model.labels[int(i)], float(p)) for p, i in zip(best.values, best.indices, strict=True)]
            said += Markup("<section><h4>{}</h4>{}</section>").format(name, draw.bars(found))
        else:
            looks = session.pool.backbone.preprocessing
            said = draw.image(picture(decode(path, looks)), f"{path.name}, as the network gets it") + said
        cards += Markup('<article class="answer"><h3>{}</h3><div>{}</div></article>').format(path.name, said)
    return cards + more
