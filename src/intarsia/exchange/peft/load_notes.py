"""How what was written is loaded: a few lines of Python in a README.md beside it."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Template

ADAPTER = Template(
    """---
library_name: peft
tags: [image-classification, intarsia]
---
# {{ name }}

An adapter of PEFT for {{ backbone }}: {{ classes | length }} classes, with the layer `{{ layer }}` that classifies.

```python
import json
{% if timm -%}
import timm
{% else -%}
from transformers import AutoModelForImageClassification
{% endif -%}
from peft import PeftModel

classes = json.load(open("{{ folder }}/intarsia.json"))["classes"]
{% if timm -%}
base = timm.create_model("{{ base }}", pretrained=True, num_classes=0{{ arguments }})
base.reset_classifier(len(classes))
{% else -%}
base = AutoModelForImageClassification.from_pretrained("{{ base }}", num_labels=len(classes))
{% endif -%}
model = PeftModel.from_pretrained(base, "{{ folder }}").eval()  # merge_and_unload() makes it as fast as the base
```

Images are prepared as `preprocessing` in `intarsia.json` says. Composed of: {{ recipe }}.
"""
)


def adapter_notes(
    folder: str, backbone: str, architecture: Mapping[str, Any], layer: str, about: Mapping[str, Any]
) -> str:
    """The README.md of an adapter.

    Args:
        folder: where it lies.
        backbone: as the pool calls it.
        architecture: of its network.
        layer: path of the layer that classifies.
        about: its classes and recipe.
    """
    timm = architecture.get("library") == "timm"
    spec = backbone.partition("/")[2].partition("?")[0]
    base, _, weights = spec.partition("@") if timm else (spec, "", "")
    given = {} if base.startswith(("hf-hub:", "local-dir:")) else architecture.get("arguments", {})
    named = {key: value for key, value in given.items() if key != "num_classes"}
    if weights or not base:
        named["pretrained_cfg_overlay"] = {"file": weights or f"{backbone}.safetensors"}
    return ADAPTER.render(
        name=about["recipe"].get("name", "composition"),
        backbone=backbone,
        classes=about["classes"],
        layer=layer,
        folder=folder,
        timm=timm,
        base=base or "vit_tiny_patch16_224",
        arguments="".join(f", {key}={value!r}" for key, value in named.items()),
        recipe=", ".join(f"{task} {weight:g}" for task, weight in about["recipe"]["weights"].items()) or "a merge rule",
    )
