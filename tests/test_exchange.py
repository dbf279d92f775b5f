"""In and out: what other libraries load is ours to rounding, and what they trained is taken as it is."""

import json
import shutil
import subprocess
import sysconfig
import venv
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_architectures import pictures
from test_cli import refused, result
from torch import Tensor, nn

from cases import ADAPTERS, QUICK, edit, head, photographs, randn, seeded, small_vit
from intarsia import IA3, Backbone, ComposedModel, Full, InputError, LoRA, Pool, learn
from intarsia.backbones import torchvision_guard
from intarsia.exchange.extras import library
from intarsia.exchange.formats import export_model
from intarsia.exchange.peft.inward import fitted, read_adapter
from intarsia.exchange.peft.measured import import_peft
from intarsia.exchange.peft.outward import export_peft, low_rank
from intarsia.heads.head import Head
from intarsia.merging import recipe as recipes
from intarsia.merging.merge import combination
from intarsia.training.loop import CXX

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

EXACT = 1e-5
"""Of the largest logit."""
TIMM, TRANSFORMERS = ("vit", "swin", "reg4_gap"), ("ViT", "Dinov2WithRegisters", "BEiT")
IMAGES = randn(3, 3, 32, 32, seed=5).float()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT * max(1.0, float(expected.abs().max())))


def logits(network: Any, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        found = network(images)
    return found if isinstance(found, Tensor) else found.logits


def classifier(name: str, folder: Path, classes: int) -> nn.Module:
    """The library's own network, as a user loads it: no line of ours."""
    if NETWORKS[name].library == "timm":
        import timm  # noqa: PLC0415

        network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        network.reset_classifier(classes)
        return network.eval()
    import transformers  # noqa: PLC0415

    return transformers.AutoModelForImageClassification.from_pretrained(folder, num_labels=classes).eval()


class Made:
    """A pool on a tiny network of a library, and where that lies."""

    def __init__(self, name: str, root: Path, adapter: Any = ADAPTERS[0]) -> None:
        self.name, self.root, self.folder = name, root, root / "theta0"
        self.theta0 = Backbone.load(NETWORKS[name].save(self.folder))
        self.pool = learn(
            self.theta0, pictures(), out=root / "pool", adapter=adapter, training=replace(QUICK, epochs=1)
        )


@pytest.fixture(scope="module", params=[*TIMM, *TRANSFORMERS])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("exchange")
    yield Made(request.param, root)
    shutil.rmtree(root, ignore_errors=True)


def composed(theta0: Backbone) -> ComposedModel:
    """A model with random heads on a backbone as it is."""
    drawn = head(4, theta0.width)
    return ComposedModel(
        theta0.model,
        Head(drawn.weight.float(), drawn.bias.float()),
        {"first": ("a cat", "dog"), "second": ("x", "y")},
        theta0.preprocessing,
        {"name": "made", "backbone": theta0.name},
        architecture=theta0.architecture,
    )


# PEFT, out


def test_a_composition_and_every_module_are_ours_through_peft(made: Made, tmp_path: Path) -> None:
    pool = made.pool
    for number, recipe in enumerate(
        (recipes.mean(pool.tasks), recipes.weighted(pool.tasks, {"task01": 1.5, "task02": -0.4}))
    ):
        out = tmp_path / str(number)
        found = export_peft(pool, pool.compose(recipe), recipe, out)
        names = ["composition", "modules/task01", "modules/task02"]
        assert sorted(found) == sorted([*names, *(f"{name}, merged" for name in names)])
        assert max(found.values()) < EXACT
        whole = {out: pool.compose(recipe).linear()}
        alone = {out / "modules" / task: pool.specialize([task]) for task in pool.tasks}
        for folder, ours in (whole | alone).items():
            adapted: Any = PeftModel.from_pretrained(
                classifier(made.name, made.folder, len(ours.labels)), folder
            ).eval()
            close(logits(adapted), logits(ours))
            close(logits(adapted.merge_and_unload()), logits(ours))
            assert tuple(json.loads((folder / "intarsia.json").read_text())["classes"]) == ours.labels


def test_one_rank_and_alpha_give_every_loader_the_same_update(made: Made, tmp_path: Path) -> None:
    """Also those that take the rank from a tensor's shape, and alpha for the rank where nothing is said."""
    pool, recipe = made.pool, recipes.weighted(made.pool.tasks, {"task01": 0.7, "task02": 0.6})
    export_peft(pool, pool.compose(recipe), recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (config["r"], {}, {})
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    tau = combination(pool.adapter, [pool.module(t) for t in pool.tasks], recipe.weights)
    weights = pool.backbone.trainable
    expected = [tau(name, theta0) for name, theta0 in weights.items()]
    names = sorted(name for name in tensors if name.endswith("lora_B.weight"))
    assert len(names) == len(weights)
    for name in names:
        b, a = tensors[name], tensors[name.replace("lora_B", "lora_A")]
        assert len(a) == b.shape[1] == config["r"]
        gaps = [float((b @ a - e).abs().max()) for e in expected if e.shape == (len(b), a.shape[1])]
        assert min(gaps) < 1e-6


def test_transformers_loads_the_adapter_itself(tmp_path: Path) -> None:
    made = Made("ViT", tmp_path)
    recipe = recipes.mean(made.pool.tasks)
    ours = made.pool.compose(recipe).linear()
    export_peft(made.pool, ours, recipe, tmp_path / "out")
    network: Any = classifier("ViT", made.folder, 4)
    network.load_adapter(str(tmp_path / "out"))
    close(logits(network.eval()), logits(ours))


def test_the_notes_beside_an_adapter_load_it(made: Made, tmp_path: Path) -> None:
    recipe = recipes.mean(made.pool.tasks)
    ours = made.pool.compose(recipe).linear()
    export_peft(made.pool, ours, recipe, tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```")[1].removeprefix("python\n")
    known: dict[str, Any] = {}
    exec(code, known)
    close(logits(known["model"]), logits(ours))


@pytest.mark.parametrize("adapter", [Full(), IA3()], ids=["full", "ia3"])
def test_updates_that_are_not_low_rank_are_exact_too(adapter: Any, tmp_path: Path) -> None:
    made = Made("vit", tmp_path / "made", adapter)
    recipe = recipes.weighted(made.pool.tasks, {"task01": 0.8, "task02": 0.3})
    export_peft(made.pool, made.pool.compose(recipe), recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == ("IA3" if adapter.kind == "ia3" else "LORA")
    adapted = PeftModel.from_pretrained(classifier("vit", made.folder, 4), tmp_path / "out").eval()
    close(logits(adapted), logits(made.pool.compose(recipe).linear()))


def test_ia3_on_layers_with_a_bias_is_a_lora_for_peft_scales_biases(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        spec = NETWORKS["vit"].save(tmp_path / "theta0")
    weights = load_file(tmp_path / "theta0" / "model.safetensors")
    save_file(
        {k: v + 0.1 if k.endswith("bias") else v for k, v in weights.items()}, tmp_path / "theta0" / "model.safetensors"
    )
    theta0 = Backbone.load(spec)
    pool = learn(theta0, pictures(), out=tmp_path / "pool", adapter=IA3(), training=replace(QUICK, epochs=1))
    recipe = recipes.mean(pool.tasks)
    export_peft(pool, pool.compose(recipe), recipe, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    plain = get_peft_model(
        classifier("vit", tmp_path / "theta0", 4), IA3Config(target_modules=["qkv"], feedforward_modules=[])
    )
    layer: Any = plain.get_submodule("base_model.model.blocks.0.attn.qkv")
    before = layer.base_layer.bias.clone()
    layer.ia3_l["default"].data.fill_(2.0)
    layer.merge()
    torch.testing.assert_close(layer.base_layer.bias, 2 * before)


# PEFT, in


def trained_elsewhere(name: str, folder: Path, out: Path, classes: int = 4, **config: Any) -> tuple[nn.Module, Any]:
    """An adapter with random factors that PEFT alone has made and saved; the network with and without it."""
    linear = r".*(q_proj|v_proj|fc2)" if NETWORKS[name].library == "transformers" else r".*(qkv|fc1|attn\.proj)"
    last = "classifier" if NETWORKS[name].library == "transformers" else "head"
    asked = LoraConfig(**{"target_modules": linear, "modules_to_save": [last], "lora_dropout": 0.1, **config})
    adapted: Any = get_peft_model(classifier(name, folder, classes), asked)
    generator = seeded(3)
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if "lora_" in key:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    adapted.save_pretrained(out)
    return adapted.eval(), asked


SCALES = {
    "plain": {"r": 3, "lora_alpha": 7},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {"r": 2, "lora_alpha": 5, "rank_pattern": {"fc[12]": 5}, "alpha_pattern": {r".*\.0\..*": 3}},
}


@pytest.mark.parametrize("name", ["vit", "ViT"])
@pytest.mark.parametrize("how", list(SCALES))
def test_an_adapter_of_peft_has_the_update_that_peft_gives_it(name: str, how: str, tmp_path: Path) -> None:
    theta0 = Backbone.load(NETWORKS[name].save(tmp_path / "theta0"))
    adapted, _ = trained_elsewhere(name, tmp_path / "theta0", tmp_path / "lora", **SCALES[how])
    found = read_adapter(tmp_path / "lora")
    assert found.rank == (5 if how == "patterns" else SCALES[how]["r"])
    assert all("classifier" in each or "head" in each for each in found.saved)
    parameters = fitted(found, theta0, LoRA(found.rank), "it")
    paths = {name: path.removeprefix("network.") for name, path in theta0.targets.items()}
    trained = 0
    for weight, path in paths.items():
        layer: Any = next(m for n, m in adapted.named_modules() if n.endswith(f".{path}"))
        expected = layer.get_delta_weight("default") if hasattr(layer, "get_delta_weight") else torch.zeros(())
        trained += hasattr(layer, "get_delta_weight")
        update = parameters[f"{weight}.B"] @ parameters[f"{weight}.A"]
        torch.testing.assert_close(update, expected.expand_as(update), rtol=1e-5, atol=1e-6)
        dense = fitted(found, theta0, Full(), "it")[f"{weight}.tau"]
        torch.testing.assert_close(dense, update)
    assert trained == len(found.updates) > 0


def test_what_we_export_comes_in_as_it_was(made: Made, tmp_path: Path) -> None:
    pool, recipe = made.pool, recipes.mean(made.pool.tasks)
    export_peft(pool, pool.compose(recipe), recipe, tmp_path / "out")
    found = fitted(read_adapter(tmp_path / "out"), pool.backbone, pool.adapter, "it")
    for name, (a, b) in low_rank(pool, recipe).items():
        torch.testing.assert_close(found[f"{name}.B"] @ found[f"{name}.A"], b @ a, rtol=1e-5, atol=1e-7)


def test_an_adapter_of_peft_composes_with_ours(tmp_path: Path) -> None:
    """It is a module like any other: alone it has peft's features, and it goes out again with the others."""
    made = Made("ViT", tmp_path)
    adapted, _ = trained_elsewhere("ViT", made.folder, tmp_path / "lora", r=3, lora_alpha=7)
    elsewhere = pictures().renamed({f"class{i}": f"new{i}" for i in range(4)}).joined("theirs")
    path, theta0 = tmp_path / "pool", made.theta0
    pool = import_peft(tmp_path / "lora", elsewhere, out=path, backbone=theta0, add=True)
    assert pool.tasks == ("task01", "task02", "theirs")
    features: list[Tensor] = []
    last: Any = adapted.get_submodule("base_model.model.classifier")
    last.register_forward_pre_hook(lambda _, x: features.append(x[0]))
    logits(adapted)
    with torch.no_grad():
        close(pool.specialize(["theirs"]).network(IMAGES), features[0])
    card = pool.card("theirs")
    assert card.settings["method"] == "imported"
    assert card.influenced_by.fisher == ()
    fisher = pool.fisher()
    assert fisher is not None
    assert fisher.count == sum(pool.card(task).images for task in pool.tasks)
    again = Pool.open(path, Backbone.load(f"hf/{made.folder}"))
    recipe = recipes.mean(again.tasks)
    ours = again.compose(recipe)
    assert len(ours.labels) == 8
    export_peft(again, ours, recipe, tmp_path / "out")
    back = PeftModel.from_pretrained(classifier("ViT", made.folder, 8), tmp_path / "out").eval()
    close(logits(back), logits(ours.linear()))


def test_an_imported_head_is_as_good_as_the_one_that_was_trained(tmp_path: Path) -> None:
    """The built-in backbone on chalk: a module that we learned goes out, and comes in without its head."""
    images = ("--data", "chalk", "--only", "animals", "--max-per-class", 8)
    ours, theirs, peft = tmp_path / "ours", tmp_path / "theirs", tmp_path / "peft"
    result("learn", *images, "--epochs", 2, "--out", ours, "--run.no-evaluate")
    result("export", ours, "--format", "peft", "--out", peft)
    found = result("import", peft / "modules" / "animals", "--out", theirs, *images)
    assert (found["task"], len(found["classes"]), found["imported"]["base"]) == ("animals", 10, "vit_sketch")
    assert found["imported"]["left_out"] == ["head.bias", "head.weight"]
    trained, measured = result("evaluate", ours), result("evaluate", theirs)
    assert measured["final_accuracy"] > trained["final_accuracy"] - 6
    assert measured["final_accuracy"] > measured["frozen_head_accuracy"]
    assert Pool.open(theirs).card("animals").settings["imported"]["from"] == "peft"


# Models, out


@pytest.mark.parametrize("name", [*TIMM, *TRANSFORMERS, "DeiT", "Swin"])
def test_transformers_and_timm_answer_as_ours(name: str, tmp_path: Path) -> None:
    """Loaded by lines of the libraries alone; image files too, through their own preprocessing."""
    import timm  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    model = composed(Backbone.load(NETWORKS[name].save(tmp_path / "theta0")))
    found = export_model(model, "transformers", tmp_path / "out")
    shutil.rmtree(tmp_path / "theta0")  # nothing of the backbone is needed any more
    assert found.logits < EXACT
    assert found.same_labels
    assert found.probabilities is not None
    assert found.probabilities < 5e-3
    network = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    close(logits(network), logits(model.linear()))
    assert list(network.config.id2label.values()) == list(model.labels)
    pickles = [p.name for p in (tmp_path / "out").iterdir() if p.suffix not in (".json", ".safetensors")]
    assert not pickles
    if NETWORKS[name].library == "transformers":
        with pytest.raises(InputError, match=r"--format timm: .*transformers.*expected one of timm"):
            export_model(model, "timm", tmp_path / "other")
        return
    found = export_model(model, "timm", tmp_path / "timm")
    assert found.probabilities is not None
    assert found.probabilities < EXACT
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    close(logits(again), logits(model.linear()))
    assert tuple(again.pretrained_cfg["label_names"]) == model.labels


@pytest.mark.parametrize("name", ["vit", "CLIPVision"])
def test_graphs_take_any_batch_and_say_how_images_are_prepared(name: str, tmp_path: Path) -> None:
    """CLIP's too, for which transformers has no classification network on its own pooling."""
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    model = composed(Backbone.load(NETWORKS[name].save(tmp_path / "theta0")))
    for format_ in ("onnx", "torch"):
        assert export_model(model, format_, tmp_path / format_).logits < EXACT
        about = json.loads((tmp_path / format_ / "classifier.json").read_text())
        assert about["classes"] == list(model.labels)
        assert about["preprocessing"] == model.preprocessing.record()
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    program = torch.export.load(tmp_path / "torch" / "model.pt2").module()
    for count in (1, 2, 7):
        images = randn(count, 3, 32, 32, seed=count).float()
        close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), logits(model, images))
        close(logits(program, images), logits(model, images))
    noted = {entry.key: entry.value for entry in onnx.load(tmp_path / "onnx" / "model.onnx").metadata_props}
    assert json.loads(noted["preprocessing"]) == model.preprocessing.record()
    assert json.loads(noted["classes"]) == list(model.labels)
    if name == "CLIPVision":
        with pytest.raises(InputError, match=r"CLIPVision.*--format onnx or torch"):
            export_model(model, "transformers", tmp_path / "transformers")


@pytest.mark.skipif(not any(map(shutil.which, CXX)), reason="AOTInductor needs a C++ compiler")
def test_torchs_graph_is_compiled_ahead_of_time(tmp_path: Path) -> None:
    model = composed(Backbone.load(NETWORKS["vit"].save(tmp_path / "theta0")))
    export_model(model, "torch", tmp_path / "out")
    inductor, package = torch._inductor, str(tmp_path / "compiled.pt2")
    with warnings.catch_warnings(action="ignore"):
        inductor.aoti_compile_and_package(torch.export.load(tmp_path / "out" / "model.pt2"), package_path=package)
        compiled = inductor.aoti_load_package(package)
    for count in (1, 5):
        images = randn(count, 3, 32, 32, seed=count).float()
        close(logits(compiled, images), logits(model, images))


def test_dinov2s_other_half_has_no_weight(tmp_path: Path) -> None:
    """Its classifier sees class token and mean of patches: heads on one of them are zero on the other."""
    import transformers  # noqa: PLC0415

    spec = NETWORKS["Dinov2"].save(tmp_path / "theta0")
    for features, zeros in (("cls", slice(32, 64)), ("mean", slice(0, 32))):
        model = composed(Backbone.load(f"{spec}?features={features}"))
        assert export_model(model, "transformers", tmp_path / features).logits < EXACT
        network = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / features)
        assert not network.classifier.weight[:, zeros].any()


WITHOUT_US = """
import json, runpy, sys, torch

try:
    import intarsia
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("intarsia is here")
root, guard, *pictures = sys.argv[1:]
runpy.run_path(guard)["import_torchvision"]()  # of a file that imports nothing of ours: torchvision beside a CPU torch
import timm, onnxruntime, peft, transformers
from PIL import Image

network = timm.create_model("local-dir:" + root + "/timm", pretrained=True).eval()
labels = network.pretrained_cfg["label_names"]
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
images = torch.stack([prepare(Image.open(picture)) for picture in pictures])
pipe = transformers.pipeline("image-classification", model=root + "/transformers")
scores = [{row["label"]: row["score"] for row in rows} for rows in pipe(pictures, top_k=4)]
session = onnxruntime.InferenceSession(root + "/onnx/model.onnx")
about = json.load(open(root + "/peft/intarsia.json"))
notes = open(root + "/peft/README.md").read().split("```")[1].removeprefix("python\\n")
exec(notes, known := {})  # what the adapter's own page says
with torch.no_grad():
    answers = {
        "timm": network(images),
        "onnx": torch.tensor(session.run(None, {"images": images.numpy()})[0]),
        "torch": torch.export.load(root + "/torch/model.pt2").module()(images),
        "peft": known["model"](images),
    }
assert about["classes"] == list(labels)
found = {name: logits.softmax(1).tolist() for name, logits in answers.items()}
found["transformers"] = [[row[label] for label in labels] for row in scores]
assert not [name for name in sys.modules if name.startswith("intarsia")]
print(json.dumps(found))
"""


def without_us(folder: Path) -> Path:
    """A new environment with all that is installed in this one, but intarsia; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (there,) = subprocess.run([python, "-Ic", code], capture_output=True, text=True, check=True).stdout.split()
    for home in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        for path in Path(home).iterdir():
            if "intarsia" not in path.name and path.name != "__pycache__" and path.suffix != ".pth":
                (Path(there) / path.name).symlink_to(path)
    return python


def test_an_environment_without_intarsia_answers_as_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each format, on image files; the commands are the command line's."""
    photographs(tmp_path)
    photos, pool = f"folder:{tmp_path / 'photos'}", tmp_path / "pool"
    learning = ("--backbone", small_vit(tmp_path), "--max-per-class", 3, "--epochs", 1, "--run.no-evaluate")
    result("learn", "--data", photos, "--tasks", 3, *learning, "--out", pool)
    chosen = ("--weights", "task01=.7", "task03=.5")
    for format_ in ("transformers", "timm", "onnx", "torch"):
        said = result("export", pool, "--format", format_, "--out", tmp_path / format_, *chosen)
        assert said["classes"] == 4
        assert said["linear"] == (format_ in ("transformers", "timm"))
        assert said["differences"]["logits"] < EXACT
    result("export", pool, "--format", "peft", "--out", tmp_path / "peft", *chosen)
    pictures = sorted((tmp_path / "photos" / "test").glob("*/*.png"))
    command = [without_us(tmp_path / "fresh"), "-I", "-W", "ignore", "-c", WITHOUT_US]
    command += [tmp_path, torchvision_guard.__file__, *pictures]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    result("compose", pool, *chosen, "--out", tmp_path / "composed")
    model = ComposedModel.load(tmp_path / "composed")
    assert model.head.factors is not None
    assert found.keys() == {"peft", "transformers", "timm", "onnx", "torch"}
    for name, rows in found.items():
        ours = (model if name in ("onnx", "torch") else model.linear()).probabilities(pictures)
        gap = float((torch.tensor(rows) - ours).abs().max())
        with capsys.disabled():
            print(f"\n{name} without intarsia: largest difference of probabilities {gap:.1e}", end="")
        assert gap < 1e-4, name
        assert torch.equal(torch.tensor(rows).argmax(1), ours.argmax(1)), name
    again = result("export", tmp_path / "composed", "--format", "timm", "--out", tmp_path / "again")
    assert again["differences"]["logits"] < EXACT
    adapters = result("export", pool, "--format", "peft", "--out", tmp_path / "ties", "--rule", "ties")
    assert {"composition", *(f"modules/task0{i}, merged" for i in (1, 2, 3))} < set(adapters["differences"])
    assert max(adapters["differences"].values()) < EXACT


# What is refused


def test_what_cannot_go_out_is_one_line_and_nothing_is_written(
    tmp_path: Path, pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    """``pool`` is on a grey network that was made in Python."""
    made, out = pool.mean(), tmp_path / "out"
    for format_, words in {
        "timm": "made in Python.*--format onnx or torch",
        "transformers": "grey.*--format timm",
    }.items():
        with pytest.raises(InputError, match=words):
            export_model(made, format_, out)
    with pytest.raises(InputError, match=r"'pickle'.*expected one of transformers, timm, onnx, torch"):
        export_model(made, "pickle", out)
    with pytest.raises(InputError, match="made in Python"):
        export_peft(pool, made, recipes.mean(pool.tasks), out)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(InputError, match=r"out exists and is not an empty folder.*--out"):
        export_model(made, "torch", out)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]
    for words in (
        ("export", tmp_path, "--format", "torch", "--out", out),
        ("export", tmp_path, "--format", "peft", "--out", out),
    ):
        assert "is not a pool" in refused(capsys, *words)
    assert "expected peft or transformers or timm or onnx or torch" in refused(capsys, "export", "x", "--format", "zip")


def test_a_library_that_is_not_there_is_named_with_its_extra() -> None:
    with pytest.raises(
        InputError, match=r"needs no_such_library, which cannot be imported.*pip install 'intarsia\[export\]'"
    ):
        library("no_such_library")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with theta0 and an adapter of PEFT on it."""
    root = tmp_path_factory.mktemp("lora")
    NETWORKS["vit"].save(root / "theta0")
    trained_elsewhere("vit", root / "theta0", root / "lora", r=3, lora_alpha=7)
    return root


def test_adapters_that_are_no_plain_lora_are_refused_by_name(lora: Path, tmp_path: Path) -> None:
    def spoiled(**changes: Any) -> Path:
        folder = Path(shutil.copytree(lora / "lora", tmp_path / str(len(list(tmp_path.iterdir())))))
        edit(folder / "adapter_config.json", lambda record: record.update(changes))
        return folder

    for changes, words in (
        ({"peft_type": "IA3"}, r"IA3 of PEFT, expected LORA"),
        ({"use_dora": True}, r"use_dora=True.*plain LoRA"),
        ({"bias": "all"}, r"bias='all'.*plain LoRA"),
        ({"r": 4}, r"lora_A \(3, .*expected rank 4"),
        ({"lora_alpha": "many"}, r"damaged"),
        ({"lora_alpha": 1e300}, r"damaged .*is not finite"),
        ({"rank_pattern": {"qkv(": 2}}, r"damaged .*pattern 'qkv\('"),
        ({"base_model_name_or_path": ["vit"]}, r"damaged .*\['vit'\] is no name"),
    ):
        with pytest.raises(InputError, match=words):
            read_adapter(spoiled(**changes))
    weights = spoiled() / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.head.lora_magnitude_vector": torch.ones(3)}, weights)
    with pytest.raises(InputError, match=r"lora_magnitude_vector is no part of a plain LoRA"):
        read_adapter(weights.parent)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"adapter_model.safetensors is missing or damaged"):
        read_adapter(weights.parent)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"adapter_model.bin is a pickle"):
        read_adapter(weights.parent)
    (weights.parent / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match=r"has no weights, expected adapter_model.safetensors"):
        read_adapter(weights.parent)
    with pytest.raises(InputError, match=r"is no adapter of PEFT: expected adapter_config.json"):
        read_adapter(tmp_path)


def test_an_adapter_of_other_layers_or_another_network_is_refused(lora: Path, tmp_path: Path) -> None:
    found = read_adapter(lora / "lora")
    theta0 = Backbone.load(f"timm/local-dir:{lora / 'theta0'}")
    narrow = Backbone.load(f"timm/local-dir:{lora / 'theta0'}", targets=["mlp"])
    with pytest.raises(InputError, match=r"an update of blocks.0.attn.* none of the 4 weights.*--network.targets"):
        fitted(found, narrow, LoRA(3), "it")
    other = Backbone.load(NETWORKS["deit3"].save(tmp_path / "deit3"))
    swin = Backbone.load(NETWORKS["swin"].save(tmp_path / "swin"))
    assert fitted(found, other, LoRA(3), "it")  # layers of the same names and shapes
    with pytest.raises(InputError, match=r"it.*--backbone"):
        fitted(found, swin, LoRA(3), "it")
    with pytest.raises(InputError, match=r"is a LoRA, the pool's modules are IA3"):
        fitted(found, theta0, IA3(), "it")
    normed = replace(found, saved=(*found.saved, "norm.weight"))
    with pytest.raises(InputError, match=r"trained norm.weight of the backbone as a whole \(modules_to_save\)"):
        fitted(normed, theta0, LoRA(3), "it")


def test_an_import_that_is_refused_changes_nothing(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs(tmp_path, train=2)
    out, photos = tmp_path / "pool", f"folder:{tmp_path / 'photos'}"
    adapter, theta0 = lora / "lora", f"timm/local-dir:{lora / 'theta0'}"
    asked = ("import", adapter, "--out", out, "--backbone", theta0)
    for more, words in (
        ((), ("--data",)),
        (("--data", photos, "--tasks", 2), ("2 tasks", "expected one", "--tasks 1")),
        (("--data", photos, "--add"), ("is not a pool",)),
        (("--data", photos, "--network.targets", "mlp"), ("attn", "--network.targets")),
        (("--data", photos, "--name", "a/b"), ("'a/b'", "slash")),
    ):
        said = refused(capsys, *asked, *more)
        assert not [word for word in words if word not in said], said
        assert not out.exists()
    assert result(*asked, "--data", photos)["task"] == "lora"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for more, words in (
        ((), ("already holds a pool", "--add")),
        (("--add",), ("task 'lora' is in the pool already",)),
        (("--add", "--name", "again"), ("class 'blue'", "in the pool already")),
    ):
        said = refused(capsys, *asked, "--data", photos, *more)
        assert not [word for word in words if word not in said], said
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
