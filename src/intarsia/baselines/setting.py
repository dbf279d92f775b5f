"""How a baseline's arguments become a run."""

from intarsia.adapters import Adapter
from intarsia.backbone import Backbone
from intarsia.config import Training
from intarsia.regularizers import ITA
from intarsia.run import Progress, Run
from intarsia.stream import TaskStream


def plain_run(
    backbone: Backbone, stream: TaskStream, adapter: Adapter, training: Training | None, progress: Progress
) -> Run:
    """A run without a regularizer; the stream's images are decoded.

    Raises:
        InputError: an image cannot be read.
    """
    stream.decode(backbone.preprocessing)
    return Run(backbone, adapter, ITA(0.0), training or Training(), stream, progress)
