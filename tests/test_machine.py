"""Devices: that of a name, if it is here."""

import pytest
import torch

from intarsia import InputError
from intarsia.machine import on_device, peak_memory


def test_a_device_that_is_here_is_given() -> None:
    assert on_device("cpu") == torch.device("cpu")
    assert torch.ones(1, device=on_device("auto")).item() == 1


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "cuda:99", "mps", "meta", "xpu", "hpu", "abacus", "", "cpu:x"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    here = torch.cuda.device_count() if name.startswith("cuda") else torch.backends.mps.is_available()
    if (name == "cuda" and here) or (name == "cuda:7" and here > 7) or (name == "mps" and here):
        pytest.skip(f"{name} is here")
    with pytest.raises(InputError) as caught:
        on_device(name)
    assert repr(name) in str(caught.value)
    assert "expected auto or cpu" in str(caught.value)


def test_memory_is_counted() -> None:
    assert peak_memory() > 50
