"""``intarsia export``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intarsia.cli.flags import Inline, Json, Positional
from intarsia.cli.options import Selection
from intarsia.cli.where import Where, is_model, merged_model
from intarsia.errors import InputError

if TYPE_CHECKING:
    from intarsia.merging.model import ComposedModel


@dataclass(frozen=True)
class Export:
    """Write a composition for another library, read it with that library, and say how far it is from ours."""

    pool: Positional[Path]
    """Folder of the pool, or of a merged model."""
    format: Literal["peft", "transformers", "timm", "onnx", "torch"]
    """peft: the composition as one LoRA adapter, and each module as one (of a pool only). Else the composed model: a
    folder of transformers or timm, an ONNX file, a program of torch.export."""
    out: Path
    """New folder to write to."""
    selection: Inline[Selection] = field(default_factory=Selection)
    backbone: str | None = None
    """The backbone, if its weights are not where the pool says: timm/<name>@<weights.safetensors>."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compose, write, and check."""
        from intarsia.console import facts, table

        found = self._adapters() if self.format == "peft" else self._model()
        result = {"out": str(self.out), "format": self.format, **found}
        if not self.json:
            about = {"written": self.out, "recipe": found["recipe"]["name"], "classes": found["classes"]}
            facts({**about, "head": "linear, as the library has it"} if found["linear"] else about)
            rows = [(what, f"{value:.1g}") for what, value in found["differences"].items() if value is not None]
            note = "Logits as a part of the largest one, on the same images; float32 rounds at about 1e-7."
            table("largest difference from ours", ("of", "difference"), rows, note)
        return result

    def _adapters(self) -> dict[str, Any]:
        from intarsia.exchange.peft.outward import export_peft

        if is_model(self.pool):
            raise InputError(
                f"{self.pool} is a merged model, whose modules cannot be told apart: name the pool it is of"
            )
        pool = Where(backbone=self.backbone).pool(self.pool, "cpu")
        model, recipe = self.selection.compose(pool), None
        if self.selection.rule == "mean":
            scale = 1.0 if self.selection.scale is None else self.selection.scale
            recipe = self.selection.of(pool).scaled(scale)
        return {**_of(model, linear=True), "differences": export_peft(pool, model, recipe, self.out)}

    def _model(self) -> dict[str, Any]:
        from intarsia.exchange.formats import FORMATS, export_model

        where = Where(backbone=self.backbone)
        if is_model(self.pool):
            model = merged_model(self.pool, self.selection, where, "cpu")
        else:
            model = self.selection.compose(where.pool(self.pool, "cpu"))
        found = export_model(model, self.format, self.out)
        differences = {"logits": found.logits, "probabilities of image files": found.probabilities}
        linear = FORMATS[self.format].linear
        return {**_of(model, linear=linear), "differences": differences, "same_labels": found.same_labels}


def _of(model: "ComposedModel", *, linear: bool) -> dict[str, Any]:
    left_out = linear and model.head.factors is not None
    return {"recipe": model.recipe, "classes": len(model.labels), "linear": left_out}
