"""Backbones: names of their weights, loading, and what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cases import GREY, QUICK, WIDTH, backbone, inputs, redraw, same, seeded, split_backbone, stream, tiny_vit
from intarsia import Backbone, InputError, LoRA, diagonal_fisher, learn
from intarsia.backbones.names import canonical

LAYERS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")


def test_trainable_weights_have_timms_names() -> None:
    theta0 = backbone()
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert list(theta0.trainable) == [f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in layers]
    state = theta0.model.state_dict()
    assert same(theta0.trainable, {name: state[name] for name in theta0.trainable})


def test_q_k_and_v_of_their_own_are_tuned_too() -> None:
    attention = [f"blocks.{i}.attn.{part}.weight" for i in (0, 1) for part in ("q", "k", "v", "proj")]
    assert list(split_backbone().trainable) == [*attention, "mlp.fc1.weight"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("vit.encoder.layer.3.attention.attention.query", "blocks.3.attn.q"),
        ("encoder.layer.3.attention.attention.key", "blocks.3.attn.k"),
        ("encoder.layer.11.attention.attention.value", "blocks.11.attn.v"),
        ("encoder.layer.3.attention.output.dense", "blocks.3.attn.proj"),
        ("encoder.layer.3.intermediate.dense", "blocks.3.mlp.fc1"),
        ("encoder.layer.3.output.dense", "blocks.3.mlp.fc2"),
        ("layers.0.attention.q_proj", "blocks.0.attn.q"),
        ("layers.0.attention.o_proj", "blocks.0.attn.proj"),
        ("blocks.3.attn.qkv", "blocks.3.attn.qkv"),
        ("pooler.dense", "pooler.dense"),
    ],
)
def test_canonical_names(path: str, name: str) -> None:
    assert canonical(path) == name


def named(tree: dict[str, object], leaf: Callable[[], nn.Module]) -> nn.Module:
    """Nested modules of the given names."""
    module = nn.Module()
    for name, below in tree.items():
        module.add_module(name, named(below, leaf) if isinstance(below, dict) else leaf())
    return module


class Transformers(nn.Module):
    """The names of a ViT of the library transformers, around a chain of its linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = {
            "attention": {"attention": {"query": 0, "key": 0, "value": 0}, "output": {"dense": 0}},
            "intermediate": {"dense": 0},
            "output": {"dense": 0},
        }
        tree: dict[str, object] = {"encoder": {"layer": {"0": layer, "1": layer}}, "pooler": {"dense": 0}}
        self.vit = named(tree, lambda: nn.Linear(8, 8))

    def forward(self, images: Tensor) -> Tensor:
        x = images.squeeze(1)
        for path, layer in self.vit.named_modules():
            if isinstance(layer, nn.Linear) and "pooler" not in path:
                x = x + layer(x).tanh()
        return x.mean(1)


def test_a_network_of_transformers_is_tuned_under_timms_names() -> None:
    model = redraw(Transformers(), 0, torch.float64)
    theta0 = Backbone(model, name="hf", preprocessing=GREY)
    assert list(theta0.trainable) == [f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in LAYERS]
    query = model.get_submodule("vit.encoder.layer.1.attention.attention.query").get_parameter("weight")
    assert torch.equal(theta0.trainable["blocks.1.attn.q.weight"], query)
    fisher = diagonal_fisher(theta0, lambda f: f[:, :3], [inputs(2)], generator=seeded(0))
    assert fisher.sums.keys() == theta0.trainable.keys()
    with theta0.attach(LoRA(1)) as attachment:
        vector = attachment.vector()
    assert vector.keys() == theta0.trainable.keys()


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["*attn.q"], {"blocks.0.attn.q", "blocks.1.attn.q"}),
        (["blocks.1.mlp.*", "*"], {f"blocks.{i}.{layer}" for i in (0, 1) for layer in LAYERS}),
    ],
)
def test_targets_choose_by_pattern_over_canonical_names(patterns: list[str], chosen: set[str]) -> None:
    """The pooler, which the network does not use, is in no one's way."""
    theta0 = Backbone(redraw(Transformers(), 0, torch.float32), name="hf", preprocessing=GREY, targets=patterns)
    assert set(theta0.trainable) == {f"{name}.weight" for name in chosen}


@pytest.mark.parametrize(
    ("targets", "named"), [(["*convolution*"], "'*convolution*'"), (["*attn.qkv", "typo"], "'typo'"), ([], "()")]
)
def test_a_target_that_matches_nothing_lists_the_layers(targets: list[str], named: str) -> None:
    with pytest.raises(InputError) as caught:
        Backbone(tiny_vit(), name="tiny", preprocessing=GREY, targets=targets)
    message = str(caught.value)
    assert f"target {named} matches no linear layer of backbone tiny" in message
    assert "blocks.0.attn.qkv, blocks.0.attn.proj, blocks.0.mlp.fc1, blocks.0.mlp.fc2, blocks.1.attn.qkv" in message


def test_a_network_without_linear_layers_is_refused() -> None:
    with pytest.raises(InputError, match="none at all"):
        Backbone(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), name="conv", preprocessing=GREY)


def test_is_frozen_and_in_evaluation_mode() -> None:
    model = tiny_vit().train()
    theta0 = Backbone(model, name="tiny", preprocessing=GREY)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())
    features = theta0.features(inputs(3, dtype=torch.float32))
    assert features.shape == (3, WIDTH)
    assert not features.requires_grad
    assert repr(theta0).startswith("Backbone(tiny, ")


def test_hash_is_of_every_weight_and_name() -> None:
    model = tiny_vit()
    seen = {Backbone(model, name="tiny", preprocessing=GREY).hash}
    assert backbone().hash in seen
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1].mul_(1.0001)
        seen.add(Backbone(model, name=name, preprocessing=GREY).hash)
    assert len(seen) == 1 + sum(1 for _ in model.parameters())
    doubled = copy.deepcopy(model).double()
    assert Backbone(doubled, name="tiny", preprocessing=GREY).hash not in seen


# Types


def test_a_network_in_float64_stays_so_and_takes_images_in_float32() -> None:
    model, x = tiny_vit(dtype=torch.float64), inputs(3, dtype=torch.float32)
    expected = model(x.double())
    theta0 = Backbone(model, name="double", preprocessing=GREY)
    assert theta0.cast_from is None
    for found in (theta0.features(x), theta0.model(x), copy.deepcopy(theta0.model)(x)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cast_and_said(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_vit().to(dtype)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    theta0 = Backbone(model, name="half", preprocessing=GREY)
    said = str(dtype).removeprefix("torch.")
    assert theta0.cast_from == said
    assert f"cast from {said}" in repr(theta0)
    assert backbone().cast_from is None
    assert "cast" not in repr(backbone())
    for name, value in theta0.model.state_dict().items():
        assert torch.equal(value, kept[name].float())
    x = inputs(3, dtype=torch.float32)
    features = theta0.features(x)
    assert features.dtype == torch.float32
    assert torch.equal(theta0.features(x.to(torch.float64)), features)
    assert theta0.features(x.to(dtype)).dtype == torch.float32
    again = Backbone(tiny_vit().to(dtype), name="half", preprocessing=GREY)
    assert again.hash == theta0.hash
    pool = learn(theta0, stream(2), training=QUICK, out=tmp_path / "p")
    assert bool(pool.mean().logits(stream(2)[0].test.tensor(GREY)).isfinite().all())


def test_only_what_is_half_is_cast() -> None:
    """A network of several types, as loaders leave them: norms single, all else half, whole numbers as they are."""
    model = tiny_vit()
    model.register_buffer("positions", torch.arange(3))
    model.register_buffer("table", torch.arange(3).half())
    model.get_submodule("blocks.0").to(torch.bfloat16)
    theta0 = Backbone(model, name="mixed", preprocessing=GREY)
    assert theta0.cast_from == "bfloat16 and float16"
    assert theta0.model.get_buffer("positions").dtype == torch.int64
    assert theta0.model.get_buffer("table").dtype == torch.float32
    assert theta0.features(inputs(1)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused_by_name(dtype: torch.dtype) -> None:
    model, path = tiny_vit(), "blocks.1.mlp.fc1"
    weight = model.get_submodule(path).get_parameter("weight").detach()
    model.get_submodule(path).weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    said = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"backbone small: {path}\.weight is {said}: expected float32.*without quant"):
        Backbone(model, name="small", preprocessing=GREY)


def test_images_that_are_not_normalised_are_refused() -> None:
    with pytest.raises(InputError, match=r"uint8.*expected normalised"):
        backbone().features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


# Loading


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of timm's smallest transformer."""
    import timm  # noqa: PLC0415  only beside an imported intarsia

    with torch.random.fork_rng():
        model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(redraw(model, 3, torch.float32).state_dict(), path)
    return path


def test_timm_weights_of_a_local_file(weights: Path) -> None:
    from timm.data.config import resolve_data_config  # noqa: PLC0415  only beside an imported intarsia
    from timm.data.transforms_factory import transforms_imagenet_eval  # noqa: PLC0415
    from timm.models import create_model  # noqa: PLC0415

    theta0 = Backbone.load(f"timm/test_vit@{weights}")
    again = Backbone.load(f"timm/test_vit@{weights}", targets=["*mlp.fc1"])
    assert theta0.hash == again.hash
    assert theta0.name == f"timm/test_vit@{weights}"
    assert all(name.endswith("mlp.fc1.weight") for name in again.trainable)
    assert len(theta0.trainable) == 4 * len(again.trainable)
    theirs = redraw(create_model("test_vit", pretrained=False, num_classes=0), 3, torch.float32).eval()
    assert same(theta0.model.state_dict(), theirs.state_dict())
    config = resolve_data_config({}, model=theirs)
    shape = (theta0.preprocessing.channels, theta0.preprocessing.size, theta0.preprocessing.size)
    assert shape == config["input_size"] == (3, 160, 160)
    assert theta0.preprocessing.mean == config["mean"]
    assert theta0.preprocessing.std == config["std"]
    assert theta0.preprocessing.interpolation == config["interpolation"]
    transform: Any = transforms_imagenet_eval(config["input_size"][-1], crop_pct=config["crop_pct"])
    assert theta0.preprocessing.resize == transform.transforms[0].size


def test_more_tensors_than_the_network_has_do_no_harm(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    state = {**load_file(weights), "head.weight": torch.zeros(5, 64)}
    save_file(state, tmp_path / "more.safetensors")
    more, plain = (Backbone.load(f"timm/test_vit@{path}") for path in (tmp_path / "more.safetensors", weights))
    assert more.hash == plain.hash


def test_weights_that_were_saved_in_parallel_are_those_without_their_prefix(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    save_file({f"module.{name}": value for name, value in load_file(weights).items()}, tmp_path / "w.safetensors")
    found, plain = (Backbone.load(f"timm/test_vit@{path}") for path in (tmp_path / "w.safetensors", weights))
    assert found.hash == plain.hash


def test_weights_that_do_not_fit_are_refused(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    state, name = load_file(weights), "blocks.0.attn.proj.weight"
    shape = tuple(state[name].shape)
    for wrong, found in ((torch.zeros(3, 3), r"\(3, 3\)"), (None, "nothing")):
        changed = {k: v for k, v in state.items() if k != name} | ({} if wrong is None else {name: wrong})
        save_file(changed, tmp_path / "w.safetensors")
        expected = rf"{name} should be \({shape[0]}, {shape[1]}\), found {found} \(1 of {len(state)} tensors differ\)"
        with pytest.raises(InputError, match=expected):
            Backbone.load(f"timm/test_vit@{tmp_path / 'w.safetensors'}")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="do not fit timm/test_vit"):
        Backbone.load(f"timm/test_vit@{tmp_path / 'w.safetensors'}")


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\x80\x02pickle"])
def test_unreadable_weights_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    said = "not a readable safetensors file" if content is not None else "cannot be read: No such file"
    with pytest.raises(InputError, match=rf"w\.safetensors:? {said}"):
        Backbone.load(f"timm/test_vit@{path}")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        Backbone.load(f"timm/test_vit@{tmp_path}")


@pytest.mark.parametrize("spec", ["vit_sketches", "resnet50", "", "hf", "timm:test_vit"])
def test_unknown_specs_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"unknown backbone .*expected 'vit_sketch'"):
        Backbone.load(spec)


def test_unknown_timm_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown backbone 'timm/eva0_tiny': timm has no such model; close"):
        Backbone.load("timm/eva0_tiny")
