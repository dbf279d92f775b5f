"""The page of a pool: five places in tabs."""

import gradio as gr
from markupsafe import Markup

from intarsia.studio.learning.process import Learning
from intarsia.studio.messages import told
from intarsia.studio.places import compose, learn, overview, tryout, unlearn
from intarsia.studio.session import Session


def page(session: Session, learning: Learning) -> gr.Blocks:
    """The page; what a tab has composed is its own, the pool and what was measured of it are all tabs'."""
    with gr.Blocks(title=f"intarsia studio: {session.pool.path.name}", analytics_enabled=False) as blocks:
        head = gr.HTML(elem_id="head")
        seen, history = gr.State(""), gr.State([])
        with gr.Tabs(elem_id="places", overflow_behavior="wrap"):
            with gr.Tab("Pool", id="pool"):
                overview.build(session, seen)
            with gr.Tab("Compose", id="compose"):
                compose.build(session, seen, history)
            with gr.Tab("Try", id="try"):
                tryout.build(session, seen, history)
            with gr.Tab("Unlearn", id="unlearn"):
                unlearn.build(session, seen)
            with gr.Tab("Learn", id="learn"):
                learn.build(session, learning, seen, head, about)

        def looked() -> tuple[str, Markup]:
            return session.state, about(session)

        blocks.load(told(session.pool.path.parent)(looked), None, [seen, head], show_progress="hidden")
    return blocks


def about(session: Session) -> Markup:
    """What pool this is."""
    pool = session.pool
    count = sum(map(len, pool.classes.values()))
    return Markup(
        '<h1>{}</h1><p class="about">{} modules of {} on {}, {} classes. What is shown at once is '
        "measured on {} test images, {} of each class.</p>"
    ).format(
        pool.path.name,
        len(pool.tasks),
        str(pool.adapter),
        pool.index.backbone["name"].split("@")[0],
        count,
        session.images,
        session.per_class,
    )
