"""How a baseline's arguments become a run."""

from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.data.stream import TaskStream
from intarsia.progress import Progress
from intarsia.regularizers.ita import ITA
from intarsia.training.recommended import recommended
from intarsia.training.run import Run
from intarsia.training.settings import Settings


def plain_run(
    backbone: Backbone, stream: TaskStream, adapter: Adapter, training: Settings | None, progress: Progress
) -> Run:
    """A run without a regularizer; the stream's images are decoded.

    Raises:
        InputError: an image cannot be read.
    """
    stream.decode(backbone.preprocessing)
    return Run(backbone, adapter, ITA(0.0), training or recommended("ita", adapter.kind)[1], stream, progress)
