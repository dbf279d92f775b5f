"""Modules and compositions as adapters of PEFT: what ``PeftModel.from_pretrained(base, DIR)`` and transformers load.

A composition of LoRA modules is one LoRA adapter, exactly:

    sum_t w_t B_t A_t = [w_1 B_1 ... w_T B_T] [A_1; ...; A_T]        of rank r_1 + ... + r_T

Other updates (full fine-tuning, merge rules, and (IA)^3 on layers with a bias, which PEFT would scale too) are low-rank
ones of full rank: tau = tau I. Every layer has one rank and alpha = rank, factors filled up with zeros: a scale of 1
whatever a loader makes of ranks that differ from layer to layer, as a fused qkv's would.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intarsia.adapters.attachment import sharing
from intarsia.adapters.ia3 import IA3
from intarsia.adapters.lora import LoRA
from intarsia.exchange.checks import logit_difference, noise, refuse_other
from intarsia.exchange.classifier import Classifier, classifier_of, inner_path, logits_of
from intarsia.exchange.extras import library, new_folder, quiet
from intarsia.exchange.libraries import PYTORCH
from intarsia.exchange.peft.load_notes import adapter_notes
from intarsia.merging.merge import combination
from intarsia.merging.model import ComposedModel
from intarsia.merging.recipe import Recipe, specialize
from intarsia.pool import Pool
from intarsia.store.files import save, write, write_json

ADAPTER, ABOUT = "adapter_model.safetensors", "intarsia.json"
MODULES = "modules"
START = "base_model.model."
"""What PEFT writes before every name."""
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Weight name -> A (r, I), B (O, r): its update is B A."""


def export_peft(pool: Pool, model: ComposedModel, recipe: Recipe | None, folder: str | Path) -> dict[str, float]:
    """Write a composition as one adapter, and every module that it has as an adapter of its own.

    Args:
        pool: whose modules they are, its backbone on the CPU.
        model: the composition, of that pool.
        recipe: what it is composed of; None where it is no combination of task vectors (a merge rule).
        folder: new or empty; the composition lies there, the modules in ``modules/<task>``.

    Returns:
        What was written, as it is and merged -> largest difference of its logits by PEFT from those of our model with a
        linear head, which PEFT has: rounding. Merged
        it has our weights; as it is, W x + B A x is rounded in another order.

    Raises:
        InputError: PEFT is not installed, the folder is in use, no library has a classification network on the
            backbone's features, or an adapter is not ours when it is read again; nothing was written.
    """
    library("peft")
    model = model.linear()
    tasks = list(model.classes) if recipe is None else [t for t in pool.tasks if recipe.weights.get(t)]
    with new_folder(Path(folder)) as fresh, quiet():
        found = _both("composition", _write(pool, model, recipe, fresh, str(folder)))
        for task in tasks:
            one = specialize(pool.tasks, [task])
            where = fresh / MODULES / task
            where.mkdir(parents=True)
            apart = _write(pool, pool.compose(one), one, where, f"{folder}/{MODULES}/{task}")
            found |= _both(f"{MODULES}/{task}", apart)
    return found


def _both(what: str, differences: tuple[float, float]) -> dict[str, float]:
    return dict(zip((what, f"{what}, merged"), differences, strict=True))


def _write(pool: Pool, model: ComposedModel, recipe: Recipe | None, folder: Path, shown: str) -> tuple[float, float]:
    """One adapter; how far it is from ours, as it is and merged."""
    theta0 = pool.backbone
    base = classifier_of(theta0.model, theta0.architecture, theta0.preprocessing, model.labels)
    head = model.head.head()
    factors = None if recipe is None else scales(pool, recipe)
    if factors is not None:
        config, state = _ia3(pool, base, factors)
    else:
        config, state = _lora(pool, base, low_rank(pool, recipe) if recipe is not None else dense(pool, model))
    state |= {f"{START}{base.layer}.{key}": value for key, value in base.head(head).items()}
    config.modules_to_save, config.inference_mode = [base.layer], True
    config.target_modules = sorted(config.target_modules)  # PEFT's set has another order in every process
    config.base_model_name_or_path = _base_name(theta0.name)
    config.save_pretrained(folder)
    save(state, folder / ADAPTER, PYTORCH)
    about = {
        "classes": list(model.labels),
        "recipe": {**model.recipe, "backbone": theta0.name},
        "preprocessing": theta0.preprocessing.record(),
    }
    write_json(about, folder / ABOUT)
    write(
        adapter_notes(shown, theta0.name, theta0.architecture or {}, base.layer, about).encode(), folder / "README.md"
    )
    return _checked(base, model, folder, shown)


def low_rank(pool: Pool, recipe: Recipe) -> Factors:
    """The exact low-rank factors of a combination of task vectors, by weight name.

    Args:
        pool: whose modules they are.
        recipe: their coefficients.
    """
    modules = [pool.module(t) for t in pool.tasks if recipe.weights.get(t)]
    weights = [recipe.weights[m.task] for m in modules]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    tau = combination(pool.adapter, modules, recipe.weights)
    for name, theta0 in pool.backbone.trainable.items():
        if isinstance(pool.adapter, LoRA) and modules:
            parts = [m.adapter_parameters(name, theta0) for m in modules]
            b = torch.cat([p["B"] * w for p, w in zip(parts, weights, strict=True)], 1)
            found[name] = torch.cat([p["A"] for p in parts]), b
        else:
            found[name] = _full_rank(tau(name, theta0))
    return found


def dense(pool: Pool, model: ComposedModel) -> Factors:
    """The update of a model whose task vector is no combination, by weight name, from its weights and theta0's."""
    theta0 = pool.backbone
    layers = dict(model.network.named_modules())
    return {
        name: _full_rank(layers[path].get_parameter("weight").detach() - theta0.trainable[name])
        for name, path in theta0.targets.items()
    }


def _full_rank(tau: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of an update (O, I) as it is: one of them is the identity."""
    o, i = tau.shape
    return (torch.eye(i).to(tau), tau) if i <= o else (tau, torch.eye(o).to(tau))


def scales(pool: Pool, recipe: Recipe) -> dict[str, Tensor] | None:
    """Factors (O,) of PEFT's (IA)^3 by weight name, where it says the same; it scales a layer's bias as well."""
    modules = [pool.module(t) for t in pool.tasks if recipe.weights.get(t)]
    layers = [pool.backbone.model.get_submodule(path) for path in pool.backbone.targets.values()]
    if not isinstance(pool.adapter, IA3) or not modules or any(_has_bias(layer) for layer in layers):
        return None
    found: dict[str, Tensor] = {}
    for name, theta0 in pool.backbone.trainable.items():
        rows = [recipe.weights[m.task] * (m.adapter_parameters(name, theta0)["l"] - 1) for m in modules]
        found[name] = 1 + torch.stack(rows).sum(0)
    return found


def _has_bias(layer: Any) -> bool:
    return layer.bias is not None and bool(layer.bias.any())


def _lora(pool: Pool, base: Classifier, factors: Factors) -> tuple[Any, dict[str, Tensor]]:
    """PEFT's configuration and tensors of low-rank updates."""
    rank = max(len(a) for a, _ in factors.values())
    state: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        padded = a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
        padded[0][: len(a)], padded[1][:, : len(a)] = a, b
        for path in _places(pool, base, name):
            state[f"{START}{path}.lora_A.weight"], state[f"{START}{path}.lora_B.weight"] = padded
    targets = [path for name in factors for path in _places(pool, base, name)]
    return library("peft").LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets), state


def _ia3(pool: Pool, base: Classifier, factors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """PEFT's configuration and tensors of scaled outputs."""
    places = {path: value for name, value in factors.items() for path in _places(pool, base, name)}
    state = {f"{START}{path}.ia3_l": value.unsqueeze(1) for path, value in places.items()}
    return library("peft").IA3Config(target_modules=list(places), feedforward_modules=[]), state


def _places(pool: Pool, base: Classifier, name: str) -> list[str]:
    """Paths in the library's network of the layers that have a weight."""
    model = pool.backbone.model
    return [base.prefix + inner_path(model, path) for path in sharing(model, pool.backbone.targets[name])]


def _base_name(spec: str) -> str:
    """The backbone as the hub calls it: a repository, timm/<name>, or a folder."""
    plain = spec.partition("?")[0].removeprefix("hf/")
    return plain.partition("@")[0] if plain.startswith("timm/") else plain


def _checked(base: Classifier, model: ComposedModel, folder: Path, shown: str) -> tuple[float, float]:
    """The differences of the adapter's logits by PEFT, as it is and merged; the base is used up."""
    adapted = library("peft").PeftModel.from_pretrained(base.network, str(folder)).eval()
    images = noise(model.preprocessing)
    found = logit_difference(model, _asked(adapted), images)
    merged = logit_difference(model, _asked(adapted.merge_and_unload().eval()), images)
    refuse_other(max(found, merged), f"{shown} by PEFT")
    return found, merged


def _asked(network: Any) -> Callable[[Tensor], Tensor]:
    return lambda images: logits_of(network(images))
