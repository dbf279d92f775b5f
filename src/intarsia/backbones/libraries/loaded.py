"""What a loader gives, and what all of them say of weights that cannot be taken."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.errors import InputError

PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")


class Loaded(NamedTuple):
    """A network without its classifier, how it wants its images, and how it is built again.

    ``architecture`` is JSON for ``architecture.build``; None where only its maker knows (a network made in Python).
    """

    network: nn.Module
    preprocessing: Preprocessing
    architecture: Mapping[str, Any] | None = None


def refuse_pickle(path: Path, what: str) -> None:
    """Refuse a file that is a pickle: to read one is to run what its maker wrote.

    Raises:
        InputError: with the command that converts it.
    """
    if path.suffix in PICKLES:
        into = path.with_suffix(".safetensors")
        raise InputError(
            f"{what}: {path.name} is a pickle, which may run code as it is read: expected safetensors. Convert it, "
            f"where you trust it: python -c \"import torch, safetensors.torch as s; w = torch.load('{path}', "
            f"map_location='cpu', weights_only=True); w = w.get('state_dict', w.get('model', w)); "
            f"s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{into}')\""
        )


def pooled_tokens(tokens: Tensor, features: Literal["cls", "mean"], prefix: int) -> Tensor:
    """(B, D) of tokens (B, N, D), of which the first ``prefix`` are no patches: the first one, or the patches' mean."""
    return tokens[:, 0] if features == "cls" else tokens[:, prefix:].mean(1)


def meta_or_real(made: Callable[[], nn.Module]) -> nn.Module:
    """Built without memory for weights; as usual where a buffer is no part of what a model keeps, or that fails."""
    try:
        with torch.device("meta"):
            network = made()
    except (RuntimeError, NotImplementedError):  # it computes with its weights as it is built
        return made()
    computed = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    return made() if computed else network
