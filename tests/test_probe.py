"""What a backbone's layers really do is looked at as it is made: networks of other people, right or refused by name."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import ADAPTERS, GREY, QUICK, inputs, randn, redraw, seeded, stream
from intarsia import Backbone, InputError, LoRA, learn
from intarsia.backbones.attention import open_attention
from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.curvature.fisher import diagonal_fisher

COLOUR = replace(GREY, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


class Block(nn.Module):
    """Residual: (B, N, 8) -> (B, N, 8); ``read`` says how it uses the weight of its first layer."""

    def __init__(self, read: str, names: tuple[str, str] = ("fc1", "fc2")) -> None:
        super().__init__()
        self.read, self.names = read, names
        self.mlp = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.mlp[name] for name in self.names)
        assert isinstance(first, nn.Module)
        weight, bias = first.weight, first.bias
        assert isinstance(weight, Tensor)
        hidden = {
            "called": lambda: first(x),
            "read": lambda: F.linear(x, weight, bias),  # pyright: ignore
            "named": lambda: F.linear(input=x, weight=weight),
            "matmul": lambda: x @ weight.T,
            "unused": lambda: x,
        }[self.read]()
        return x + second(hidden.tanh())


class Net(nn.Module):
    """Images (B, 1, 8, 8), their rows as tokens, through two blocks and what ``end`` makes of the tokens."""

    def __init__(
        self, read: str = "called", end: Callable[[Tensor], Tensor] = lambda x: x.mean(1), first: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(read), Block("called"))
        self.end, self.first = end, first

    def forward(self, images: Tensor) -> Tensor:
        x = images.squeeze(1)
        x = self.blocks(x.transpose(0, 1)).transpose(0, 1) if self.first else self.blocks(x)
        return self.end(x)


def made(network: nn.Module, **options: object) -> Backbone:
    return Backbone(redraw(network, 0, torch.float32), name="net", preprocessing=GREY, **options)  # pyright: ignore


@pytest.mark.parametrize("read", ["read", "named"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=[a.kind for a in ADAPTERS])
def test_a_network_that_reads_its_weights_is_as_one_that_calls_its_layers(read: str, adapter: object) -> None:
    plain, reads = made(Net()), made(Net(read))
    if read == "named":
        with torch.no_grad():
            for network in (plain, reads):
                network.model.get_parameter("blocks.0.mlp.fc1.bias").zero_()
    x, weight = inputs(5, dtype=torch.float32), randn(3, 8, seed=1).float()

    def head(features: Tensor) -> Tensor:
        return F.linear(features, weight)

    found, expected = (diagonal_fisher(net, head, [x], estimator="exact") for net in (reads, plain))
    for name, f in expected.sums.items():
        torch.testing.assert_close(found.sums[name], f)
        assert float(f.sum()) > 0
    gradients = []
    for network in (plain, reads):
        with network.attach(adapter, seeded(3)) as attachment:  # pyright: ignore
            for i, parameter in enumerate(attachment.parameters()):
                parameter.data += randn(*parameter.shape, seed=i).float() * 0.1
            attachment.compose({n: 0.1 * w for n, w in network.trainable.items()}, 2)
            loss = head(network.model(x)).square().sum()
            gradients.append([loss.detach(), *torch.autograd.grad(loss, list(attachment.parameters()))])
            with attachment.disabled():
                torch.testing.assert_close(network.model(x), plain.features(x))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_read_otherwise_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"net:.*blocks\.0\.mlp\.fc1\.weight.*cannot be followed.*--network\.targets"):
        made(Net("matmul"))


def test_a_layer_that_is_not_used_is_left_out_and_refused_where_it_is_asked_for() -> None:
    theta0 = made(Net("unused"))
    assert list(theta0.targets) == [f"blocks.{layer}.weight" for layer in ("0.mlp.fc2", "1.mlp.fc1", "1.mlp.fc2")]
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.fc1\.weight.*does not act on the features"):
        made(Net("unused"), targets=["blocks.0.mlp.fc1", "*fc2"])


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda x: x, r"of shape \(2, 8, 8\).*x\[:, 0\] or x\.mean\(1\)"),
        (lambda x: x[:, :, None, :].transpose(1, 3), r"of shape \(2, 8, 1, 8\).*x\.mean\(\(2, 3\)\)"),
        (lambda x: {"last_hidden_state": x}, "a dict"),
        (lambda x: x.mean(), r"of shape \(\)"),
    ],
)
def test_features_of_another_shape_are_refused_with_what_was_got(end: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(InputError, match=rf"backbone net: its features are {said}.*"):
        made(Net(end=end))


def test_a_network_whose_layers_mix_images_is_refused() -> None:
    """Tokens first: (N, B, D), which is no image after another."""
    with pytest.raises(InputError, match=r"sees inputs \(8, 2, 8\) for 2 images.*batch-first"):
        made(Net(first=True))


def test_images_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(InputError, match=r"does not take images of shape \(2, 1, 9, 9\).*preprocessing"):
        Backbone(Net(), name="net", preprocessing=replace(GREY, size=9, resize=9))


@pytest.mark.parametrize("names", [("fc1", "odd"), ("first", "second")])
def test_a_network_that_would_be_trained_by_half_is_refused_naming_the_layers(names: tuple[str, str]) -> None:
    network = Net()
    network.blocks[1] = Block("called", names)
    with pytest.raises(InputError, match=rf"blocks\.\*\.mlp\.{names[1]}.*by half.*--network.targets"):
        made(network)
    theta0 = made(network, targets=["attention", "mlp", f"*{names[1]}"])
    assert f"blocks.1.mlp.{names[1]}.weight" in theta0.targets


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_in_the_place_of_torchs_is_equal(batch_first: bool, bias: bool) -> None:
    plain = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first)})
    x = randn(3, 5, 8, seed=0).float()
    expected, _ = plain["attn"](x, x, x)
    assert open_attention(plain) == 1
    found, weights = plain["attn"](x, x, x, need_weights=False)
    torch.testing.assert_close(found, expected)
    assert weights is None
    with pytest.raises(ValueError, match="mask"):
        plain["attn"](x, x, x, attn_mask=torch.zeros(5, 5))


def test_torchvisions_transformer_and_torchs_own_encoder_are_trained_whole() -> None:
    import_torchvision()
    from torchvision.models import VisionTransformer  # noqa: PLC0415

    with torch.random.fork_rng():
        network = VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5)
    network.heads = nn.Sequential()
    redraw(network.double(), 0, torch.float64).float()
    images = randn(2, 3, 32, 32, seed=1).float()
    network.eval()
    expected = network(images)
    theta0 = Backbone(network, name="tv", preprocessing=replace(COLOUR, size=32, resize=32))
    torch.testing.assert_close(theta0.features(images), expected)
    assert {n.split(".", 2)[2] for n in theta0.targets} == {
        "attn.qkv.weight",
        "attn.proj.weight",
        "mlp.0.weight",
        "mlp.3.weight",
    }


class Encoder(nn.Module):
    """Images (B, 1, 8, 8), their rows as tokens, through torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images.squeeze(1)).mean(1)


def test_torchs_encoder_learns(tmp_path: object) -> None:
    with torch.random.fork_rng():
        network = Encoder()
    theta0 = made(network.eval())
    assert list(theta0.targets) == [
        f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    pool = learn(theta0, stream(2), out=f"{tmp_path}/pool", adapter=LoRA(2), training=QUICK)
    assert all(float(tau.abs().sum()) > 0 for tau in pool.vector(pool.tasks[0]).values())
