"""The studio from Python."""

import atexit
import shutil
from collections.abc import Sequence

from intarsia.data.records import gathered
from intarsia.data.stream import TaskStream
from intarsia.exchange.extras import library
from intarsia.pool import Pool
from intarsia.studio.session import Session


def open_studio(
    pool: Pool, stream: TaskStream | None = None, *, port: int | None = None, per_class: int | None = None
) -> str:
    """Show a pool's page to this machine, from a notebook say, until this process ends.

    Args:
        pool: with at least one module.
        stream: holds its tasks; what it was learned from if None.
        port: of the page's address; the first free one from 7860 if None.
        per_class: test images of each class that every move is measured on; as many as a move has time for if None.

    Returns:
        The address.

    Raises:
        InputError: gradio is not installed, the pool is empty, its images are not there, or the port is taken.
    """
    library("gradio", "studio", "the studio")
    from intarsia.studio.learning.process import Learning  # noqa: PLC0415  gradio is optional
    from intarsia.studio.page import page  # noqa: PLC0415
    from intarsia.studio.serve import serve, tidy  # noqa: PLC0415

    def images(pool: Pool, tasks: Sequence[str]) -> TaskStream:
        if stream is not None and all(task in stream for task in tasks):
            return stream.subset(tasks)
        return gathered({task: pool.card(task).stream for task in tasks})

    session = Session(pool.path, pool.backbone, images, per_class=per_class)
    tidy(session.home)
    learning = Learning(session)
    atexit.register(shutil.rmtree, session.uploads, ignore_errors=True)
    atexit.register(learning.close)
    return serve(page(session, learning), session.uploads, host="127.0.0.1", port=port, share=False)
