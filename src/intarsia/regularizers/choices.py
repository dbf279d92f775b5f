"""The regularizers by name, and the steps that can be taken on one."""

from typing import Literal

Method = Literal["ita", "iel"]


Step = Literal["decoupled", "coupled", "proximal"]
