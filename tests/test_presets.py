"""The paper's cells: each resolves and starts from a folder of its shape; a run is known by what it was made with."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_cli import refused, result

from cases import KINDS, QUICK, backbone, stream, timm_weights
from intarsia import Backbone, InputError, Pool, TaskStream, evaluate, learn
from intarsia.adapters.records import build_adapter
from intarsia.cli.main import parsed
from intarsia.cli.outcome import outcome
from intarsia.regularizers.records import build_regularizer, regularizer_record
from intarsia.store.index import Index
from intarsia.study.estimate import estimate
from intarsia.study.paper import BACKBONE, DATA, PRESETS, preset, preset_of, verify_preset
from intarsia.training.fine_tuning import Configuration
from intarsia.training.recommended import resolve
from intarsia.training.settings import Protocol

ITA_LORA = {"imagenet-r": 77.79, "cifar100": 89.96, "cub200": 85.55, "caltech256": 92.65, "mit67": 86.60}
SIZES = {"imagenet-r": [20] * 10, "cifar100": [10] * 10, "cub200": [20] * 10, "resisc45": [5] * 9}
SIZES |= {"cropdisease": [5] * 7, "mit67": [7] * 7 + [6] * 3}


def test_there_is_a_cell_for_every_data_set_method_and_adapter() -> None:
    assert len(PRESETS) == 7 * 2 * 3
    assert {name: preset(f"{name}-ita-lora").expected for name in ITA_LORA} == ITA_LORA
    assert preset("cropdisease-iel-ia3").expected == 95.68
    records = result("presets")["presets"]
    assert [record["name"] for record in records] == list(PRESETS)
    assert {record["source"] for record in records} == {"paper", "ours"}


def test_published_hyper_parameters_are_the_papers() -> None:
    cifar, iel, crop = (preset(n) for n in ("cifar100-ita-lora", "cifar100-iel-full", "cropdisease-ita-ia3"))
    assert (cifar.strength, iel.strength, crop.strength) == (0.02, 20.0, 5.0)
    assert {cell.training.protocol for cell in PRESETS.values()} == {"paper"}
    t = cifar.training
    assert (t.lr, t.weight_decay, t.batch_size, t.epochs, t.lambda_h, t.lambda_0) == (3e-4, 0, 128, 20, 0.025, 0.001)
    assert (iel.training.lambda_h, iel.training.lambda_0) == (0.1, 0.001)
    t = crop.training
    assert (t.epochs, t.pretune_epochs, t.lambda_h, t.lambda_0) == (5, 1, 0.1, 0.01)


def test_a_flag_wins_over_the_preset_and_the_preset_over_the_tools_own() -> None:
    verb = parsed(["learn", "--preset", "cropdisease-ita-full", "--data", "folder:x", "--epochs", "7"])
    plan, cell = verb.plan(), preset("cropdisease-ita-full")
    chosen = plan.chosen
    assert (chosen.method, chosen.adapter, chosen.strength, plan.backbone) == ("ita", "full", 5.0, BACKBONE)
    assert chosen.settings == replace(cell.training, epochs=7)
    assert plan.source == {"tasks": 7, "data": "folder:x"}
    split = parsed(["learn", "--preset", "cropdisease-ita-full", "--data", "folder:x", "--split", "tasks.json"])
    assert split.plan().source == {"data": "folder:x", "split": Path("tasks.json")}
    paper = parsed(["learn", "--paper", "--method", "iel", "--adapter", "ia3"]).plan().chosen
    assert (paper.method, paper.adapter, paper.strength) == ("iel", "ia3", 20.0)
    assert paper.settings == preset("cifar100-iel-ia3").training


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small timm model of three channels, saved on the spot."""
    return timm_weights(tmp_path_factory.mktemp("presets"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DATA))
def test_a_stream_of_the_data_sets_shape_starts(name: str, weights: Path, tmp_path: Path) -> None:
    """As many classes as the data set has, two tiny images each: split as the paper says, and the first steps run."""
    data = DATA[name]
    for i in range(data.classes):
        for side in ("train", "test"):
            folder = tmp_path / side / f"class{i:03}"
            folder.mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (9, 8), (i % 256, 40 * k, 99)).save(folder / f"{k}.png")
    stream = TaskStream.load(f"folder:{tmp_path}", tasks=data.tasks)
    sizes = [len(task.classes) for task in stream]
    assert len(sizes) == data.tasks
    assert sizes == SIZES.get(name, sizes)
    cell = preset(f"{name}-iel-lora")
    theta0 = Backbone.load(f"timm/test_vit@{weights}")
    weak = cell.strength * 1e-6  # at its own, the explicit step diverges: random weights have too large a Fisher
    adapter, regularizer = build_adapter(cell.adapter), build_regularizer(cell.method, weak)
    cost = estimate(theta0, stream.subset([0]), Configuration(adapter, regularizer, cell.training))
    assert cost.classes == sizes[0]
    assert cost.steps == cell.training.epochs


def test_a_preset_without_its_images_is_refused_with_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "CIFAR-100's images with --data" in refused(capsys, "learn", "--preset", "cifar100-ita-lora")
    assert "cifar100-ita-full" in refused(capsys, "learn", "--preset", "cifar100-ita", "--data", "folder:x")
    assert "expected a pool" in refused(capsys, "presets", "verify")


def learned_with(pool: Pool, name: str, backbone: str = BACKBONE) -> Pool:
    """The pool as it would be, had the preset been used."""
    cell = preset(name)
    settings = {**regularizer_record(build_regularizer(cell.method, cell.strength)), **cell.training.record()}
    about = {**pool.index.backbone, "name": backbone}
    index = Index(about, {"kind": cell.adapter}, {**settings, "seed": 3}, pool.tasks, pool.index.files)
    return Pool(pool.path, index, pool.backbone)


def test_a_run_is_recognised_by_what_it_was_made_with(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {name: replace(data, tasks=4, classes=8) for name, data in DATA.items() if name == "cifar100"}
    small = {n: replace(p, data=shapes["cifar100"]) for n, p in PRESETS.items() if n.startswith("cifar100")}
    monkeypatch.setattr("intarsia.study.paper.PRESETS", small)
    assert preset_of(learned_with(pool, "cifar100-iel-full")).name == "cifar100-iel-full"
    model = BACKBONE.removeprefix("timm/")
    for spec in (f"timm/{model}@weights.safetensors", f"timm/hf-hub:timm/{model}", f"timm/hf-hub:timm/{model}@a/b@c"):
        assert preset_of(learned_with(pool, "cifar100-ita-lora", spec)).name == "cifar100-ita-lora"
    for spec in (f"timm/{model.split('.')[0]}@weights.safetensors", f"timm/{model}_ft_in1k", f"other/{model}"):
        with pytest.raises(InputError, match=f"backbone {re.escape(spec)} instead of {BACKBONE}"):
            preset_of(learned_with(pool, "cifar100-ita-lora", spec))
    with pytest.raises(InputError, match=r"not learned with a preset: nearest is cifar100-\w+-\w+, with "):
        preset_of(pool)


def test_a_run_agrees_within_a_point(pool: Pool) -> None:

    cell, found = preset("cifar100-ita-lora"), evaluate(pool.mean(), stream())
    near, far = (verify_preset(cell, found, own_heads=a) for a in (90.9, 88.9))
    assert (near["agrees"], far["agrees"]) == (True, False)
    assert near["difference"] == pytest.approx(0.94)
    assert near["final_accuracy"] == found.final_accuracy
    assert json.dumps(near)


@pytest.mark.parametrize("protocol", ["recommended", "paper"])
def test_after_the_paper_protocol_its_own_heads_are_measured_too(
    protocol: Protocol, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = stream(2)
    pool = learn(backbone(), tasks, out=tmp_path / "p", training=replace(QUICK, protocol=protocol))
    found = outcome(pool, tasks, as_json=False)
    assert ("own_heads_accuracy" in found) == ("paper's own heads" in capsys.readouterr().out) == (protocol == "paper")


@pytest.mark.parametrize("method", ["ita", "iel"])
def test_the_papers_step_is_decoupled_but_for_full_fine_tuning(method: str) -> None:
    steps = {adapter: resolve(method=method, adapter=adapter, from_paper=True).settings.step for adapter in KINDS}
    assert steps == {"lora": "decoupled", "full": "coupled", "ia3": "decoupled"}
    assert preset(f"cifar100-{method}-full").training.step == "coupled"
