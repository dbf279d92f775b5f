"""Backbones of transformers: images prepared as its own processors do on Pillow, options, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import NETWORKS, RATIO, Network
from safetensors.torch import load_file, save_file
from test_timm_transforms import photo

from cases import edit, stream
from intarsia import Backbone, InputError
from intarsia.backbones.libraries.transformers import transformers_preprocessing
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import decode
from intarsia.data.fingerprint import notes_on

SHARED = Path(__file__).parents[2] / "shared" / "data" / "dinov2-small-saliency"
RGB = SimpleNamespace(num_channels=3)
SIZES = ((640, 480), (333, 500), (37, 53), (224, 224), (1000, 260))
SQUARE = {"height": 224, "width": 224}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {}),
    ("ViT", {"size": {"height": 384, "width": 384}, "resample": 3}),
    ("ViT", {"do_normalize": False}),
    ("DeiT", {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}}),
    ("DeiT", {"size": {"height": 438, "width": 438}, "crop_size": {"height": 384, "width": 384}, "resample": 2}),
    ("Beit", {"do_center_crop": False, **HALF}),
    ("Beit", {"size": {"height": 256, "width": 256}, "do_center_crop": True, "resample": 2, **HALF}),
    ("Bit", {"size": {"shortest_edge": 256}}),
    ("Bit", {"size": {"shortest_edge": 96}, "crop_size": {"height": 84, "width": 84}, "resample": 2}),
    ("CLIP", {}),
    ("CLIP", {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    ("Siglip", {"size": {"height": 224, "width": 224}, **HALF}),
    ("Siglip", {"size": {"height": 384, "width": 384}, "resample": 2, **HALF}),
    ("ConvNext", {"size": {"shortest_edge": 384}}),
]


@pytest.mark.parametrize(("name", "asked"), PROCESSORS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(PROCESSORS)])
def test_files_become_what_the_image_processor_makes_of_them(name: str, asked: dict[str, Any], tmp_path: Path) -> None:
    import transformers  # noqa: PLC0415

    processor = getattr(transformers, f"{name}ImageProcessorPil")(**asked)
    if name == "ConvNext":
        with pytest.raises(InputError, match=r"hf/made.*keeps the images' shape.*preprocessor_config"):
            transformers_preprocessing("made", {**processor.to_dict(), "do_center_crop": False}, RGB)
        return
    preprocessing = transformers_preprocessing("made", processor.to_dict(), RGB)
    assert Preprocessing.from_record(preprocessing.record()) == preprocessing
    for seed, size in enumerate(SIZES):
        image = photo(*size, seed)
        image.save(tmp_path / "image.png")
        got = preprocessing.normalize(decode(tmp_path / "image.png", preprocessing)[None])[0]
        expected = torch.as_tensor(processor(image, return_tensors="np")["pixel_values"][0])
        torch.testing.assert_close(got, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"size": {"height": 200, "width": 100}}, "200 x 100"),
        ({"size": {"shortest_edge": 256}, "do_center_crop": False}, "keeps the images' shape"),
        ({"size": {"height": 224, "width": 224}, "resample": 1}, "filter 1"),
        ({"do_resize": False}, "does not resize"),
        (
            {"size": {"shortest_edge": 200}, "do_center_crop": True, "crop_size": SQUARE},
            "224 of 200",
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {**SQUARE, "width": 200}},
            "224 x 200",
        ),
    ],
)
def test_images_prepared_otherwise_are_refused_by_name(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"hf/made.*{said}.*expected a square"):
        transformers_preprocessing("made", {"resample": 2, **asked}, RGB)


def test_an_image_size_keeps_the_share_that_is_cut_off() -> None:
    asked = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    found = transformers_preprocessing("made", asked, RGB, 70)
    assert (found.size, found.resize, found.crop) == (70, 80, "center")
    assert transformers_preprocessing("made", {"size": {"height": 224, "width": 224}}, RGB, 32).resize == 32


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "dinov2"
    NETWORKS["Dinov2WithRegisters"].save(folder)
    return folder


def test_features_are_the_librarys_own_tokens(dinov2: Path) -> None:
    import transformers  # noqa: PLC0415

    model, images = transformers.AutoModel.from_pretrained(dinov2).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model(images)
    registers = model.config.num_register_tokens
    assert registers > 0
    for features, expected in {
        "": tokens.pooler_output,
        "?features=pooled": tokens.pooler_output,
        "?features=cls": tokens.last_hidden_state[:, 0],
        "?features=mean": tokens.last_hidden_state[:, 1 + registers :].mean(1),
    }.items():
        torch.testing.assert_close(Backbone.load(f"hf/{dinov2}{features}").features(images), expected)


def test_another_image_size_is_the_librarys_own_interpolation(tmp_path: Path) -> None:
    import transformers  # noqa: PLC0415

    for name in ("ViT", "CLIPVision", "SiglipVision", "Dinov2", "DINOv3ViT", "BEiT"):
        spec = NETWORKS[name].save(tmp_path / name)
        theta0, images = Backbone.load(f"{spec}?image-size=48"), torch.randn(2, 3, 48, 48)
        assert theta0.preprocessing.size == 48
        made = getattr(transformers, f"{NETWORKS[name].name}Model")
        model = made.from_pretrained(tmp_path / name).eval()
        accepts = name not in ("Dinov2", "DINOv3ViT")
        with torch.no_grad():
            out = model(images, **({"interpolate_pos_encoding": True} if accepts else {}))
        expected = out.last_hidden_state[:, 0] if name == "ViT" else out.pooler_output
        torch.testing.assert_close(theta0.features(images), expected)
        native = Backbone.load(spec)
        assert native.hash == theta0.hash
        assert native.preprocessing.size == 32


def test_one_channel(tmp_path: Path) -> None:
    spec = Network("transformers", "Dinov2", {**RATIO, "num_channels": 1}).save(tmp_path / "grey")
    theta0 = Backbone.load(spec)
    assert theta0.preprocessing.channels == len(theta0.preprocessing.mean) == 1
    assert theta0.features(torch.zeros(2, 1, 32, 32)).shape == (2, 32)


def test_half_precision_is_cast_and_said(dinov2: Path, tmp_path: Path) -> None:
    folder = copied(dinov2, tmp_path / "half")
    state = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", lambda config: config.update(dtype="float16"))
    theta0 = Backbone.load(f"hf/{folder}")
    assert theta0.cast_from == "float16"
    assert "cast from float16" in repr(theta0)
    assert notes_on(stream(), theta0) == [f"hf/{folder}: its weights are float16, and are cast to float32"]
    assert theta0.features(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


@pytest.mark.slow
def test_a_pickle_is_refused_with_the_command_that_converts_it(dinov2: Path, tmp_path: Path) -> None:
    folder = copied(dinov2, tmp_path / "pickled")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin is a pickle.*python -c") as caught:
        Backbone.load(f"hf/{folder}")
    command = str(caught.value).partition('python -c "')[2].rpartition('"')[0]
    subprocess.run([sys.executable, "-c", command], check=True)
    (folder / "pytorch_model.bin").unlink()
    os.rename(folder / "pytorch_model.safetensors", folder / "model.safetensors")
    assert load_file(folder / "model.safetensors").keys() == state.keys()


def test_weights_that_would_be_random_are_refused(dinov2: Path, tmp_path: Path) -> None:
    folder = copied(dinov2, tmp_path / "half-empty")
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if "fc1.weight" in name)
    save_file({k: v for k, v in state.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"1 weights are not in its checkpoint.*{lost}.*expected all"):
        Backbone.load(f"hf/{folder}")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_folder_without_what_a_model_has_is_refused(lost: str, said: str, dinov2: Path, tmp_path: Path) -> None:
    folder = copied(dinov2, tmp_path / "folder")
    (folder / lost).unlink()
    with pytest.raises(InputError, match=rf"hf/.*{said}.*expected"):
        Backbone.load(f"hf/{folder}")


def test_no_folder_and_no_text_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf/\./nowhere.*is no folder"):
        Backbone.load("hf/./nowhere")
    import transformers  # noqa: PLC0415

    folder = tmp_path / "bert"
    shape: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=20, **shape)).save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    with pytest.raises(InputError, match=r"'bert' model: expected one of images"):
        Backbone.load(f"hf/{folder}")


@pytest.mark.slow
def test_without_transformers_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from intarsia import Backbone, InputError\n"
        "try: Backbone.load('hf/some/model')\n"
        "except InputError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "pip install 'intarsia[hf]'" in found.stdout
    assert found.stdout.count("\n") == 1


def test_features_that_a_network_does_not_have_are_refused(tmp_path: Path) -> None:
    spec = NETWORKS["SiglipVision"].save(tmp_path / "siglip")
    with pytest.raises(InputError, match=r"has no cls"):
        Backbone.load(f"{spec}?features=cls")
    assert Backbone.load(f"{spec}?features=mean").width == 32


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real ViT-S is not beside this checkout")
def test_a_real_network_has_the_features_of_timms(tmp_path: Path) -> None:
    """DINOv2 ViT-S/14 at 70 px: transformers' features, and timm's of the same weights, q, k and v joined."""
    theirs = load_file(SHARED / "model.safetensors")
    state = {timms: theirs[name] for name, timms in names(theirs).items()}
    for i in range(12):
        layer = f"encoder.layer.{i}.attention.attention"
        for end in ("weight", "bias"):
            three = [theirs[f"{layer}.{part}.{end}"] for part in ("query", "key", "value")]
            state[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(three)
    save_file({k: v.float().contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    ours = Backbone.load(f"hf/{SHARED}?image-size=70")
    timms = Backbone.load(f"timm/vit_small_patch14_dinov2@{tmp_path / 'w.safetensors'}?image-size=70")
    images = torch.rand(4, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    a, b = ours.features(ours.preprocessing.normalize(images)), timms.features(ours.preprocessing.normalize(images))
    assert float(torch.nn.functional.cosine_similarity(a, b).min()) > 0.99  # positions are interpolated otherwise


def names(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """A name of transformers' DINOv2 -> timm's, of all but q, k and v."""
    found = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    for name in state:
        if name.startswith("encoder.layer.") and ".attention.attention." not in name:
            inner = name.replace("encoder.layer.", "blocks.").replace("attention.output.dense", "attn.proj")
            found[name] = inner.replace("layer_scale1.lambda1", "ls1.gamma").replace(
                "layer_scale2.lambda1", "ls2.gamma"
            )
    return found


def copied(folder: Path, to: Path) -> Path:
    import shutil  # noqa: PLC0415

    return Path(shutil.copytree(folder, to))
