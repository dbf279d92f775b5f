"""The steps that can be taken on a regularizer."""

from typing import Literal

Step = Literal["decoupled", "coupled", "proximal"]


CLIP = 100.0
