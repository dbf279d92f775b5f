"""A LoRA that PEFT wrote, as the parameters of a module: W0 + (alpha / r) B A of each layer, its scale put into B.

``rslora`` has alpha / sqrt(r); a layer's own rank and alpha are found as PEFT finds them. Dropout is of training and
does not matter. Only safetensors and JSON are read. What cannot be a task vector is refused by name: DoRA, trained
biases, norms or embeddings, and what else a file has that is no LoRA.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from intarsia.adapters.full import Full
from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.libraries.loaded import refuse_pickle
from intarsia.backbones.names import BUILTIN, canonical
from intarsia.errors import InputError
from intarsia.store.files import load, read_json, reading

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
START = "base_model.model."
OTHER = (
    *("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config", "velora_config"),
    "alora_invocation_tokens",
)
"""Settings of PEFT's LoRA with which an update is not B A."""


@dataclass(frozen=True)
class Adaptation:
    """A LoRA from elsewhere.

    Args:
        updates: path of a layer, as its maker's network has it -> A (r, I), B (O, r), their scale in B.
        saved: names of other tensors that were trained (``modules_to_save``).
        base: the network it was trained on, as its maker called it.
        about: what its configuration says of rank and scale, as JSON.
    """

    updates: Mapping[str, tuple[Tensor, Tensor]]
    saved: tuple[str, ...]
    base: str | None
    about: Mapping[str, Any]

    @property
    def rank(self) -> int:
        """The largest of any layer."""
        return max(len(a) for a, _ in self.updates.values())


def read_adapter(folder: str | Path) -> Adaptation:
    """What lies in the folder of an adapter.

    Raises:
        InputError: it is no adapter of PEFT, damaged, a pickle, no LoRA, or one whose update is not B A.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no adapter of PEFT: expected {CONFIG} and {WEIGHTS} in it")
    config = read_json(folder / CONFIG)
    with reading(folder / CONFIG):
        _check(config, folder)
    if not (folder / WEIGHTS).is_file():
        for path in sorted(folder.iterdir()):
            refuse_pickle(path, f"adapter {folder}")
        raise InputError(
            f"adapter {folder}: it has no weights, expected {WEIGHTS}; save it with PEFT's save_pretrained"
        )
    tensors = {_bare(name): value for name, value in load(folder / WEIGHTS).items()}
    parts: dict[str, dict[str, Tensor]] = {}
    saved: list[str] = []
    for name, value in tensors.items():
        found = re.fullmatch(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
        if found:
            parts.setdefault(found[1], {})[found[2]] = value
        elif ".lora_" in name or ".ia3_" in name:
            raise InputError(f"adapter {folder}: {name} is no part of a plain LoRA, expected lora_A and lora_B alone")
        else:
            saved.append(name)
    with reading(folder / WEIGHTS):
        if not parts:
            raise ValueError("no lora_A and lora_B in it")
        updates = {path: _update(path, parts[path], config) for path in sorted(parts)}
    about = {key: config.get(key) for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")}
    return Adaptation(updates, tuple(sorted(saved)), config.get("base_model_name_or_path"), about)


def base_of(adaptation: Adaptation, folder: str | Path) -> str:
    """The backbone that an adapter names, as ``Backbone.load`` takes it.

    Raises:
        InputError: it names none.
    """
    base = adaptation.base
    if not base:
        raise InputError(f"adapter {folder} does not say what it was trained on: name it with --backbone")
    return base if base == BUILTIN or base.startswith("timm/") else f"hf/{base}"


def _check(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is no LoRA, or more than one.

    Raises:
        InputError: naming it.
        ValueError: the name of its network is none.
    """
    if not isinstance(base := config.get("base_model_name_or_path"), str | None):
        raise ValueError(f"base_model_name_or_path {base!r} is no name")
    if (kind := config["peft_type"]) != "LORA":
        raise InputError(f"adapter {folder} is {kind} of PEFT, expected LORA: merge it there, or train a LoRA")
    wrong = [f"{key}={config[key]!r}" for key in OTHER if config.get(key)]
    if config.get("bias", "none") != "none":
        wrong.append(f"bias={config['bias']!r}")
    if wrong:
        raise InputError(
            f"adapter {folder} has {wrong[0]}: expected a plain LoRA, whose update is B A alone; train it without"
        )


def _bare(name: str) -> str:
    return name.removeprefix(START).replace(".modules_to_save.", ".").replace(".base_layer.", ".")


def _update(path: str, factors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """A and the scaled B of a layer.

    Raises:
        ValueError, KeyError: they do not fit each other, or the configuration.
    """
    a, b = factors["A"].float(), factors["B"].float()
    rank = _pattern(config.get("rank_pattern"), path, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
    if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == rank:
        raise ValueError(
            f"{path}: lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)}, expected rank {rank}, and a matrix"
        )
    b = b * (alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError(f"{path}: its update is not finite")
    return a, b


def _pattern(patterns: Mapping[str, Any] | None, path: str, usual: Any) -> Any:
    """A layer's own rank or alpha, as PEFT's ``get_pattern_key`` finds it.

    Raises:
        ValueError: a pattern is no regular expression.
    """
    for key, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except re.error as error:
            raise ValueError(f"pattern {key!r}: {error}") from error
    return usual


def fitted(adaptation: Adaptation, backbone: Backbone, adapter: Adapter, what: str) -> dict[str, Tensor]:
    """The adapter's parameters of a module, ``<weight name>.<parameter>`` -> tensor.

    Layers that it did not train have an update of zero.

    Args:
        adaptation: what was read.
        backbone: theta0.
        adapter: the pool's; LoRA or full.
        what: is read, for messages.

    Raises:
        InputError: it trained a layer that the pool does not, one of another shape, or something else of the backbone.
    """
    _refuse_saved(adaptation, backbone, what)
    updates: dict[str, tuple[Tensor, Tensor]] = {}
    for path, (a, b) in adaptation.updates.items():
        name = _weight(path, backbone, what)
        shape = tuple(backbone.trainable[name].shape)
        if (len(b), a.shape[1]) != shape:
            raise InputError(
                f"{what}: {path} is an update {(len(b), a.shape[1])} of {name} {shape} in {backbone.name}: expected "
                "the backbone that it was trained on; name it with --backbone"
            )
        updates[name] = a, b
    found: dict[str, Tensor] = {}
    for name, theta0 in backbone.trainable.items():
        o, i = theta0.shape
        a, b = updates.get(name) or (theta0.new_zeros(1, i), theta0.new_zeros(o, 1))
        if isinstance(adapter, LoRA):
            found |= {f"{name}.A": a.cpu(), f"{name}.B": b.cpu()}
        elif isinstance(adapter, Full):
            found[f"{name}.tau"] = b.cpu() @ a.cpu()
        else:
            raise InputError(
                f"{what} is a LoRA, the pool's modules are {adapter}: import it into a pool of LoRA or full"
            )
    return found


def _weight(path: str, backbone: Backbone, what: str) -> str:
    """The name of the weight that a path of another's network means: its end is that of ours, or its canonical name."""
    for name, place in backbone.targets.items():
        own = place.removeprefix("network.")
        if path == own or path.endswith(f".{own}"):
            return name
    if (name := f"{canonical(path)}.weight") in backbone.targets:
        return name
    some = ", ".join(list(backbone.targets)[:4])
    raise InputError(
        f"{what} has an update of {path}, which is none of the {len(backbone.targets)} weights that are trained of "
        f"{backbone.name} ({some}, ...): name the backbone it was trained on with --backbone, and its layers with "
        "--network.targets"
    )


def _refuse_saved(adaptation: Adaptation, backbone: Backbone, what: str) -> None:
    """A classifier of its own may be there, which is left out; no other part of the backbone.

    Raises:
        InputError: naming it.
    """
    own = {name.removeprefix("network.") for name in backbone.model.state_dict()}
    for name in adaptation.saved:
        if any(name == key or name.endswith(f".{key}") for key in own):
            raise InputError(
                f"{what} has trained {name} of the backbone as a whole (modules_to_save): expected a LoRA, and a "
                "classifier at most; train it without"
            )
