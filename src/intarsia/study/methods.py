"""What ``compare`` can run: ITA and IEL as the tool learns them, and the methods of others, each with its settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intarsia.adapters.lora import LoRA
from intarsia.adapters.records import adapter_record, build_adapter
from intarsia.baselines.derpp import DERpp
from intarsia.baselines.ewc import EWC
from intarsia.baselines.finetune import FineTuning
from intarsia.baselines.frozen import Frozen
from intarsia.baselines.joint import Joint
from intarsia.baselines.modules import Modules
from intarsia.baselines.peers.ewc_lora import EWCLoRA
from intarsia.baselines.peers.lca import LCA
from intarsia.baselines.peers.ranpac import RanPAC
from intarsia.baselines.peers.slca import SLCA
from intarsia.baselines.peers.tuna import TUNA
from intarsia.baselines.protocol import Baseline
from intarsia.baselines.seed import SEED
from intarsia.baselines.tmc import TMC
from intarsia.curvature.choices import CurvatureKind
from intarsia.regularizers.l2 import L2
from intarsia.regularizers.records import build_regularizer, regularizer_record
from intarsia.training.recommended import MEAN_SCALE, recommended
from intarsia.training.settings import Settings


@dataclass(frozen=True)
class Method:
    """A way to learn a stream.

    Args:
        baseline: what learns it, with what else it is set to.
        settings: its own; epochs, batch and seed are the comparison's.
    """

    baseline: Baseline
    settings: Settings

    @property
    def about(self) -> str:
        """One line."""
        if isinstance(self.baseline, Modules):
            how = "" if self.settings.curvature == "diagonal" else f", {self.settings.curvature}"
            return f"{self.baseline.regularizer.kind.upper()}, {self.baseline.adapter}{how}: {self.baseline.about}"
        return self.baseline.about

    @property
    def options(self) -> dict[str, Any]:
        """The baseline's own settings, as JSON."""
        records = {"adapter": adapter_record, "regularizer": regularizer_record}
        return {name: records[name](value) if name in records else value for name, value in vars(self.baseline).items()}


def _cell(method: str, adapter: str, curvature: CurvatureKind = "diagonal") -> Method:
    """ITA or IEL with an adapter, as the tool would learn it."""
    strength, settings = recommended(method, adapter, curvature=curvature)
    return Method(Modules(build_regularizer(method, strength), build_adapter(adapter)), settings)


METHODS: Mapping[str, Method] = {
    "frozen": Method(Frozen(), Settings(lr=0.0)),
    "joint": Method(Joint(), Settings(lr=3e-3)),
    "finetune": Method(FineTuning(), Settings(lr=3e-5)),
    "ewc": Method(EWC(strength=10.0), Settings(lr=1e-4)),
    "derpp": Method(DERpp(b=2.0), Settings(lr=1e-3)),
    "seed": Method(SEED(), Settings(lr=1e-3)),
    "tmc": Method(TMC(), Settings(lr=1e-4)),
    "ranpac": Method(RanPAC(width=5000, standardize=True), Settings(lr=3e-3)),
    "slca++": Method(SLCA(slow=0.01, shared=True, head_epochs=20), Settings(lr=3e-4)),
    "tuna": Method(TUNA(shared=True), Settings(lr=3e-3)),
    "lca": Method(LCA(), Settings(lr=3e-3)),
    "ewc-lora": Method(EWCLoRA(own_classes=False), Settings(lr=1e-4)),
    "l2": Method(Modules(L2(0.1), LoRA()), Settings(lr=3e-3, mean_scale=MEAN_SCALE["ita"])),
    "ita": _cell("ita", "lora"),
    "ita-full": _cell("ita", "full"),
    "ita-ia3": _cell("ita", "ia3"),
    "iel": _cell("iel", "lora"),
    "iel-full": _cell("iel", "full"),
    "iel-ia3": _cell("iel", "ia3"),
    "ita-kfac": _cell("ita", "lora", "kfac"),
    "ita-ekfac": _cell("ita", "lora", "ekfac"),
    "iel-kfac": _cell("iel", "lora", "kfac"),
    "iel-ekfac": _cell("iel", "lora", "ekfac"),
}
STANDARD = ("frozen", "joint", "finetune", "ewc", "l2", "derpp", "tmc", "seed", "ita", "iel")
"""What is compared if nothing is named."""
