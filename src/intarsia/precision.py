"""Double precision where the device has it."""

from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float64; on the CPU if the device knows none (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()
