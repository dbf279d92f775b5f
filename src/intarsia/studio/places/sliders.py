"""The controls of Compose: presets, a slider per module, a factor, the tasks that answer, and the way back."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from markupsafe import Markup

from intarsia.studio import composition as compositions
from intarsia.studio.composition import Composition
from intarsia.studio.session import Session

TOGETHER = 1.5
"""Seconds in which several moves of one control are one step of "undo"."""


@dataclass(frozen=True)
class Step:
    """What a tab has composed: one step of its history.

    Args:
        composition: without the factor.
        scale: factor of all coefficients.
        preset: that was chosen, or none: an own mix.
        control: which was moved last.
        at: when, in seconds.
    """

    composition: Composition
    scale: float = 1.0
    preset: str = compositions.OWN
    control: str = ""
    at: float = 0.0

    @classmethod
    def mean(cls, session: Session) -> "Step":
        """What a tab begins with."""
        return cls(session.mean(), preset=compositions.MEAN)

    @property
    def composed(self) -> Composition:
        """With the factor."""
        return self.composition if self.scale == 1 else self.composition.scaled(self.scale)


def after(history: Sequence[Step], step: Step) -> list[Step]:
    """The history with a step more; a drag of one control is one step."""
    if not history:
        return [step]
    last = history[-1]
    if len(history) > 1 and step.control == last.control and step.at - last.at < TOGETHER:
        return [*history[:-1], step]
    same = (step.composition, step.scale) == (last.composition, last.scale)
    return [*history] if same else [*history, step]


@dataclass(frozen=True)
class Controls:
    """The controls of one tab.

    Args:
        preset: sets all others.
        undo: goes a step back.
        scale: factor of all coefficients.
        answers: tasks whose classes compete.
        sliders: a coefficient per task.
    """

    preset: gr.Dropdown
    undo: gr.Button
    sliders: list[gr.Slider]
    scale: gr.Slider
    answers: gr.CheckboxGroup

    @classmethod
    def of(cls, session: Session) -> "Controls":
        """Of a pool's tasks, set to the mean."""
        tasks = session.tasks
        with gr.Row(elem_classes="save"):
            preset = gr.Dropdown(
                compositions.presets(tasks),
                value=compositions.MEAN,
                interactive=True,
                label="Preset",
                elem_id="preset",
                scale=3,
                info="Sets all controls below. TIES merges by a rule of its own; moving a slider leaves it.",
                min_width=180,
            )
            undo = gr.Button("Undo", elem_id="undo", scale=1, min_width=90, size="md")
        sliders = [
            gr.Slider(-1, 1, value=round(w, 3), step=0.01, interactive=True, label=task)
            for task, w in session.mean().weights
        ]
        scale = gr.Slider(0, 3, value=1, step=0.05, interactive=True, label="Factor of all coefficients")
        answers = gr.CheckboxGroup(
            [*tasks],
            value=[*tasks],
            interactive=True,
            label="Tasks that answer",
            info="Their classes compete for every image; the others' classes are left out.",
        )
        return cls(preset, undo, sliders, scale, answers)

    @property
    def all(self) -> list[Any]:
        """Those that a step sets, in the order of ``values``."""
        return [self.preset, self.scale, self.answers, *self.sliders]


def values(step: Step) -> list[Any]:
    """What the controls show at a step."""
    found = step.composition
    return [step.preset, step.scale, [*found.answers], *(round(w, 3) for _, w in found.weights)]


def controls_of(
    session: Session, safe: Callable[..., Any], history: gr.State, shown: gr.HTML, show: Callable[[Step], Markup]
) -> None:
    """The controls, and what follows when one is moved: a step more in the history, and what it is worth.

    Args:
        session: of the pool.
        safe: tells a handler's errors in the page.
        history: the tab's steps.
        shown: where the worth of the last step stands.
        show: a step -> its worth.
    """
    tasks, controls = session.tasks, Controls.of(session)

    def moved(which: str) -> Callable[..., tuple[Any, ...]]:
        def handler(steps: list[Step], factor: float, answering: list[str], *w: float) -> tuple[Any, ...]:
            found = Composition.of(tasks, dict(zip(tasks, w, strict=True)), answering)
            step = Step(found, factor, control=which, at=time.monotonic())
            return after(steps, step), show(step), step.preset

        return safe(handler)

    def chosen(steps: list[Step], name: str) -> tuple[Any, ...]:
        if name == compositions.OWN:
            return gr.skip(), gr.skip(), *(gr.skip() for _ in controls.all)
        step = Step(compositions.preset(name, tasks, session.pool.mean_scale), 1.0, name, "preset", time.monotonic())
        return after(steps, step), show(step), *values(step)

    def undone(steps: list[Step]) -> tuple[Any, ...]:
        left = steps[:-1] or steps
        return left, show(left[-1]), *values(left[-1])

    # One after another, in the order of the moves: the last to be moved is the last to be shown.
    how: Mapping[str, Any] = {"show_progress": "hidden", "concurrency_id": "moves", "concurrency_limit": 1}
    last: Mapping[str, Any] = {**how, "trigger_mode": "always_last"}
    inputs = [history, *controls.all[1:]]
    for task, slider in zip(tasks, controls.sliders, strict=True):
        slider.input(moved(f"slider of {task}"), inputs, [history, shown, controls.preset], **last)
    controls.scale.input(moved("scale"), inputs, [history, shown, controls.preset], **last)
    controls.answers.input(moved("answers"), inputs, [history, shown, controls.preset], **last)
    controls.preset.input(safe(chosen), [history, controls.preset], [history, shown, *controls.all], **last)
    controls.undo.click(safe(undone), history, [history, shown, *controls.all], **how)
