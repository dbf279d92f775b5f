"""The cells of the paper's table: data, method, adapter, settings, and the accuracy it reports (arXiv 2405.16350).

The images are the user's to bring: `learn --preset cifar100-ita-lora --data folder:<dir>`, with train/ and test/.
Hyper-parameters are published for some cells only; the others have CIFAR-100's strengths, and say that they are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from intarsia.adapters.choices import AdapterKind
from intarsia.errors import InputError
from intarsia.evaluation.metrics import Evaluation
from intarsia.pool import Pool
from intarsia.regularizers.choices import Method
from intarsia.training.recommended import paper
from intarsia.training.settings import Settings

Origin = Literal["paper", "ours"]


BACKBONE = "timm/vit_base_patch16_224.augreg_in21k"


TOLERANCE = 1.0
"""Points around the paper's mean of three runs within which a run is said to agree: ours, the paper gives no spread."""


@dataclass(frozen=True)
class DataSet:
    """A stream of the paper.

    Args:
        title: as the paper calls it.
        tasks: number of tasks.
        classes: number of classes.
        epochs: of fine-tuning, and whether that is published.
        published: whether the epochs are.
        accuracy: (method, adapter) -> final accuracy of the paper, percent.
    """

    title: str
    tasks: int
    classes: int
    epochs: int
    published: bool
    accuracy: Mapping[tuple[Method, AdapterKind], float]


def _cells(*values: float) -> dict[tuple[Method, AdapterKind], float]:
    """ITA full, LoRA, (IA)^3, then IEL full, LoRA, (IA)^3: the order of the paper's table."""
    methods: tuple[Method, ...] = ("ita", "iel")
    kinds: tuple[AdapterKind, ...] = ("full", "lora", "ia3")
    return dict(zip([(m, k) for m in methods for k in kinds], values, strict=True))


DATA: Mapping[str, DataSet] = {
    "imagenet-r": DataSet("ImageNet-R", 10, 200, 50, True, _cells(76.43, 77.79, 77.04, 80.09, 79.93, 77.86)),
    "cifar100": DataSet("CIFAR-100", 10, 100, 20, True, _cells(89.38, 89.96, 90.66, 89.38, 89.53, 89.72)),
    "cub200": DataSet("CUB-200", 10, 200, 50, True, _cells(84.80, 85.55, 85.67, 84.89, 84.95, 84.57)),
    "caltech256": DataSet("Caltech-256", 10, 257, 20, False, _cells(92.32, 92.65, 92.67, 92.23, 92.19, 92.70)),
    "mit67": DataSet("MIT-67", 10, 67, 50, True, _cells(85.35, 86.60, 84.74, 82.79, 84.49, 85.54)),
    "resisc45": DataSet("RESISC45", 9, 45, 30, True, _cells(80.50, 82.00, 83.73, 81.42, 82.53, 81.50)),
    "cropdisease": DataSet("CropDisease", 7, 35, 5, True, _cells(91.81, 95.85, 95.41, 95.83, 95.88, 95.68)),
}


@dataclass(frozen=True)
class Preset:
    """One cell.

    Args:
        name: ``<data>-<method>-<adapter>``.
        data: its stream.
        method: ITA or IEL.
        adapter: what a task vector is made of.
        strength: alpha or beta.
        training: all other settings.
        source: whose hyper-parameters these are.
    """

    name: str
    data: DataSet
    method: Method
    adapter: AdapterKind
    strength: float
    training: Settings
    source: Origin

    @property
    def expected(self) -> float:
        """The paper's final accuracy, percent."""
        return self.data.accuracy[self.method, self.adapter]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        shape = {"data": self.data.title, "tasks": self.data.tasks, "classes": self.data.classes, "backbone": BACKBONE}
        cell = {"method": self.method, "adapter": self.adapter, "strength": self.strength}
        told = {"expected_accuracy": self.expected, "tolerance": TOLERANCE, "source": self.source}
        return {"name": self.name, **shape, **cell, "settings": self.training.record(), **told}


def _preset(key: str, method: Method, adapter: AdapterKind) -> Preset:
    data, (strength, training) = DATA[key], paper(method, adapter)
    training = replace(training, epochs=data.epochs)
    source: Origin = "paper" if key == "cifar100" else "ours"
    if key == "cropdisease" and method == "ita":
        strength, source = 5.0, "paper"
        training = replace(training, lambda_h=0.1, lambda_0=0.01, pretune_epochs=1)
    return Preset(f"{key}-{method}-{adapter}", data, method, adapter, strength, training, source)


PRESETS: Mapping[str, Preset] = {
    preset.name: preset for key, data in DATA.items() for preset in (_preset(key, *cell) for cell in data.accuracy)
}
"""The cells of the paper's table, by name."""


def preset(name: str) -> Preset:
    """A cell by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        near = [n for n in PRESETS if name and n.startswith(name.split("-", maxsplit=1)[0])] or list(PRESETS)
        raise InputError(f"unknown preset {name!r}: expected for example {', '.join(near[:6])}; `intarsia presets`")
    return PRESETS[name]


def preset_of(pool: Pool) -> Preset:
    """The cell whose stream and settings, but for the seed, a pool was learned with.

    Raises:
        InputError: none; the message says what comes nearest and where it differs.
    """
    about = dict(pool.index.settings)
    shape = (len(pool.tasks), sum(map(len, pool.classes.values())))
    nearest: tuple[int, str, str] | None = None
    for found in PRESETS.values():
        wanted = {"method": found.method, "strength": found.strength, **found.training.record()}
        pairs = {k: (about.get(k), v) for k, v in wanted.items() if k != "seed" and about.get(k) != v}
        if pool.adapter.kind != found.adapter:
            pairs["adapter"] = pool.adapter.kind, found.adapter
        if shape != (found.data.tasks, found.data.classes):
            pairs["tasks, classes"] = shape, (found.data.tasks, found.data.classes)
        if not is_the_papers(pool.index.backbone["name"]):
            pairs["backbone"] = pool.index.backbone["name"], BACKBONE
        if not pairs:
            return found
        if nearest is None or len(pairs) < nearest[0]:
            told = "; ".join(f"{k} {a} instead of {b}" for k, (a, b) in list(pairs.items())[:4])
            nearest = len(pairs), found.name, told
    assert nearest is not None
    raise InputError(f"{pool.path} was not learned with a preset: nearest is {nearest[1]}, with {nearest[2]}")


def is_the_papers(name: str) -> bool:
    """Whether a backbone is the paper's, by architecture and tag, wherever its weights were read from.

    Args:
        name: as a pool has it: ``timm/<name>``, ``timm/hf-hub:timm/<name>``, either with ``@<file of weights>``. A name
            without its tag is another one: timm's default tag of this architecture is not the paper's.
    """
    library, _, model = name.partition("@")[0].partition("/")
    return f"{library}/{model.removeprefix('hf-hub:').removeprefix('timm/')}" == BACKBONE


def verify_preset(cell: Preset, found: Evaluation, own_heads: float) -> dict[str, Any]:
    """A run's final accuracy beside the paper's.

    Args:
        cell: what it was learned with.
        found: what it came to, with class prototypes for heads.
        own_heads: its final accuracy under the paper's own heads, as they were fine-tuned: what the paper reports.
    """
    difference = own_heads - cell.expected
    return {
        "preset": cell.name,
        "source": cell.source,
        "final_accuracy": found.final_accuracy,
        "own_heads_accuracy": own_heads,
        "expected_accuracy": cell.expected,
        "difference": difference,
        "tolerance": TOLERANCE,
        "agrees": abs(difference) <= TOLERANCE,
    }
