"""Names to choose from, without torch."""

from typing import Literal

DEFAULT_STREAM = "chalk"
"""The stream that is loaded if none is named, in Python and on the command line: modules pay on it."""


Augmentation = Literal["none", "sketch", "photo", "crop"]
"""How training images are changed at random (see ``augmentation.augment``)."""
