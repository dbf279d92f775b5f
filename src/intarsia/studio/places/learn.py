"""Learn: a zip or a folder of a new task, what it will cost, start, losses, stop, go on."""

from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from intarsia.errors import InputError
from intarsia.studio import draw
from intarsia.studio.learning.process import Learning, NewTask, Status, progress_of
from intarsia.studio.messages import notice, told, without_paths
from intarsia.studio.places.overview import advance
from intarsia.studio.session import Session

OFTEN = 2.0
"""Seconds between two looks at the learning, and at whether the pool has changed."""


def build(session: Session, learning: Learning, seen: gr.State, head: gr.HTML, about: Any) -> None:
    """The place; it looks now and then, and sets ``seen`` when the pool has changed."""
    safe = told(session.pool.path.parent, session.uploads)
    task = gr.State(None)
    gr.HTML(
        draw.note(
            "Teach the pool one more task. Its images lie as <class>/<image>, or train/<class>/<image> and "
            "test/<class>/<image>; without test images, a fifth of each class is held out. The other modules "
            "are not changed. Learning goes on if you close this page."
        )
    )
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            name = gr.Textbox(interactive=True, label="Name of the task", max_lines=1, elem_id="task-name")
            archive = gr.File(
                label="Zip of its images", file_types=[".zip"], type="filepath", height=120, elem_id="zip"
            )
            folder = gr.Textbox(
                interactive=True,
                label="Or a folder on this machine",
                max_lines=1,
                visible=learning.folders,
                elem_id="folder",
            )
            epochs = gr.Number(
                interactive=True,
                label="Epochs (0: as many as the pool's other tasks)",
                value=0,
                precision=0,
                minimum=0,
                maximum=1000,
            )
            look = gr.Button("Look at the images", size="md", elem_id="look")
        with gr.Column(min_width=300):
            found = gr.HTML(elem_id="found")
            start = gr.Button("Start", variant="primary", size="md", interactive=False, elem_id="start")
            with gr.Row():
                stop = gr.Button("Stop", size="md", interactive=False, elem_id="stop", min_width=80)
                go_on = gr.Button("Go on", size="md", interactive=False, elem_id="go-on", min_width=80)
                give_up = gr.Button("Give up", size="md", interactive=False, elem_id="give-up", min_width=80)
            shown = gr.HTML(elem_id="learning", elem_classes="live")
    buttons = [start, stop, go_on, give_up]

    def looked(called: str, packed: str | None, place: str, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        made = _made(learning, called.strip(), packed, place.strip(), progress)
        cost = learning.cost(made, advance(progress))
        return made, _found(made, cost.record()), *_allowed(learning.status(), made)

    def started(made: NewTask | None, count: float) -> tuple[Any, ...]:
        if made is None:
            raise InputError('no images were looked at yet: name the task, drop a zip, then "Look at the images"')
        learning.start(made, int(count) or None)
        return None, *now(None)

    def stopped() -> tuple[Any, ...]:
        learning.stop()
        return now(None)

    def resumed() -> tuple[Any, ...]:
        learning.resume()
        return now(None)

    def given_up() -> tuple[Any, ...]:
        learning.give_up()
        notice("The stopped run is given up; the modules in the pool are as they were.")
        return now(None)

    def now(made: NewTask | None) -> tuple[Any, ...]:
        status = learning.status()
        return _shown(status), *_allowed(status, made)

    def ticked(made: NewTask | None, state: str) -> tuple[Any, ...]:
        try:
            session.refresh()
        except InputError as error:  # told in its place: a message every two seconds would bury the page
            said = draw.alert(without_paths(str(error), session.pool.path.parent))
            return said, *(gr.update(interactive=False) for _ in buttons), gr.skip(), gr.skip()
        return *now(made), gr.skip() if state == session.state else session.state, about(session)

    outputs = [shown, *buttons]
    look.click(safe(looked), [name, archive, folder], [task, found, *buttons])
    start.click(safe(started), [task, epochs], [task, *outputs], show_progress="hidden")
    stop.click(safe(stopped), None, outputs)
    go_on.click(safe(resumed), None, outputs, show_progress="hidden")
    give_up.click(safe(given_up), None, outputs, show_progress="hidden")
    gr.Timer(OFTEN).tick(safe(ticked), [task, seen], [*outputs, seen, head], show_progress="hidden")


def _made(learning: Learning, name: str, packed: str | None, place: str, progress: gr.Progress) -> NewTask:
    if packed and place:
        raise InputError("a zip and a folder are given: expected one of the two")
    if packed:
        return learning.from_zip(Path(packed), name, advance(progress))
    if place:
        return learning.from_folder(Path(place), name)
    raise InputError("no images: drop a zip" + (", or name a folder" if learning.folders else ""))


def _allowed(status: Status, made: NewTask | None) -> list[Any]:
    """Which buttons can be pressed: start, stop, go on, give up."""
    idle, left = not status.running, bool(status.stopped)
    may = (idle and not left and made is not None, status.running and status.ours, idle and left, idle and left)
    return [gr.update(interactive=yes) for yes in may]


def _found(made: NewTask, cost: dict[str, Any]) -> Markup:
    task = made.stream[0]
    held = " A fifth of each class is held out to test." if made.test_fraction else ""
    notes = Markup("").join(draw.note(text) for text in made.stream.notes)
    return (
        draw.table(
            f"What learning {task.name} will cost on this machine, for the pool's own number of epochs.{held}",
            ("", "estimate"),
            [
                ("classes", ", ".join(task.classes)),
                ("training images", f"{len(task.train)}"),
                ("test images", f"{len(task.test)}"),
                ("minutes", _minutes(cost)),
                ("memory, MiB", f"{cost['memory_mib']:.0f}"),
                ("disk, MiB", f"{cost['disk_mib']:.1f}"),
            ],
            "words",
        )
        + notes
    )


def _minutes(cost: dict[str, Any]) -> str:
    found = cost["set_up_minutes"] + cost["training_minutes"]
    return f"{found:.1f}" if found >= 0.1 else "less than 0.1"


def _shown(status: Status) -> Markup:
    """How far the learning is, in words and as a curve."""
    if status.running:
        whose = "" if status.ours else " by another process, which this page cannot stop"
        word = f"Learning{whose}: {progress_of(status.said) if status.ours else 'the pool is being written'}."
    elif status.failed:
        word = f"The run ended: {status.failed}"
    elif status.stopped:
        word = f"A run was stopped {status.stopped}. Go on, and it ends as if it had never been stopped."
    else:
        word = "Done: the new module is in the pool." if status.done else "Nothing is being learned."
    parts = Markup('<p class="note" role="status">{}</p>').format(word)
    if len(status.losses) > 1:
        points = [(float(epoch), loss) for epoch, loss in enumerate(status.losses, start=1)]
        parts += draw.curve("Loss per training image after each epoch.", {"loss": points}, "epoch", "loss, nats")
    elif status.losses:
        parts += draw.note(f"Loss per training image after the first epoch: {status.losses[0]:.3f}.")
    return parts
