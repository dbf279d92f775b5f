"""Adapters against dense weights, PEFT and numeric minima."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from cases import (
    ADAPTERS,
    GREY,
    KINDS,
    QUICK,
    REPEATED,
    backbone,
    inputs,
    newton,
    randn,
    redraw,
    repeated,
    same,
    seeded,
    shake,
    split_backbone,
    stream,
)
from intarsia import IA3, Backbone, Full, InputError, LoRA, TaskVector, learn
from intarsia.adapters import AdaptedLinear, Adapter, Attachment
from intarsia.adapters.records import adapter_record
from intarsia.merging.model import ComposedModel

each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)


def adapted(adapter: Adapter, *, bias: bool = True, seed: int = 0, zero_row: bool = False) -> AdaptedLinear:
    """An adapted layer 5 -> 4 in float64 with random parts."""
    linear = nn.Linear(5, 4, bias=bias, dtype=torch.float64).requires_grad_(False)
    linear.weight.copy_(randn(4, 5, seed=seed))
    if bias:
        linear.bias.copy_(randn(4, seed=seed + 1))
    if zero_row:
        linear.weight[2] = 0
    layer = AdaptedLinear("w.weight", linear, adapter, seeded(seed + 2))
    for i, part in enumerate(layer.adapter_parameters.values()):
        part.data = randn(*part.shape, seed=seed + 3 + i)
    return layer


def values(layer: AdaptedLinear) -> dict[str, Tensor]:
    return {key: part.detach().clone() for key, part in layer.adapter_parameters.items()}


def dense(parts: Mapping[str, Tensor], theta0: Tensor) -> Tensor:
    """Tau by the definition of each adapter (docs/method.md section 4)."""
    if "tau" in parts:
        return parts["tau"]
    return parts["B"] @ parts["A"] if "A" in parts else theta0 * (parts["l"][:, None] - 1)


@each_adapter
def test_starts_at_zero_and_changes_nothing(adapter: Adapter) -> None:
    linear = nn.Linear(5, 4)
    layer = AdaptedLinear("w.weight", linear, adapter, seeded(0))
    x = randn(3, 7, 5, seed=1, dtype=torch.float32)
    assert layer.delta().abs().max() == 0
    torch.testing.assert_close(layer(x), linear(x))


@each_adapter
def test_delta_is_its_definition(adapter: Adapter) -> None:
    layer = adapted(adapter)
    torch.testing.assert_close(layer.delta(), dense(values(layer), layer.linear.weight), rtol=0, atol=0)


@each_adapter
@pytest.mark.parametrize("count", [1, 2, 5])
def test_combined_is_the_weighted_sum_of_deltas(adapter: Adapter, count: int) -> None:
    layers = [adapted(adapter, seed=10 * i) for i in range(count)]
    theta0, modules = layers[0].linear.weight, [values(layer) for layer in layers]
    weights = [0.3, -1.5, 0.0, 2.0, 0.25][:count]
    expected = sum(w * dense(parts, theta0) for w, parts in zip(weights, modules, strict=True))
    torch.testing.assert_close(adapter.combined(modules, weights, theta0), expected, rtol=1e-12, atol=1e-12)


@each_adapter
def test_combined_of_one_is_its_delta_in_a_new_tensor(adapter: Adapter) -> None:
    parts = values(layer := adapted(adapter))
    before = {name: value.clone() for name, value in parts.items()}
    alone = adapter.combined([parts], [1.0], layer.linear.weight)
    assert torch.equal(alone, layer.delta())
    alone.zero_()
    assert same(parts, before)


@each_adapter
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zero_row", [True, False])
def test_forward_is_that_of_the_dense_weight(adapter: Adapter, bias: bool, zero_row: bool) -> None:
    layer = adapted(adapter, bias=bias, zero_row=zero_row)
    theta0, x = layer.linear.weight, randn(2, 3, 5, seed=9)
    torch.testing.assert_close(layer(x), F.linear(x, theta0 + layer.delta(), layer.linear.bias))


@each_adapter
@pytest.mark.parametrize("zero_row", [True, False])
def test_composed_forward_is_that_of_the_dense_mean(adapter: Adapter, zero_row: bool) -> None:
    layer = adapted(adapter, zero_row=zero_row)
    theta0, x = layer.linear.weight, randn(2, 3, 5, seed=9)
    earlier = [adapted(adapter, seed=s, zero_row=zero_row) for s in (20, 40, 60)]
    total = sum((dense(values(e), theta0) for e in earlier), torch.zeros_like(theta0))
    layer.compose(total, 4)
    expected = F.linear(x, theta0 + (total + layer.delta()) / 4, layer.linear.bias)
    torch.testing.assert_close(layer(x), expected)
    layer.compose(None, 1)
    torch.testing.assert_close(layer(x), F.linear(x, theta0 + layer.delta(), layer.linear.bias))


@each_adapter
def test_gradients_of_the_forward_are_those_through_the_dense_weight(adapter: Adapter) -> None:
    layer = adapted(adapter)
    theta0, x = layer.linear.weight, randn(2, 3, 5, seed=9).requires_grad_()
    layer.compose(randn(4, 5, seed=11) if not isinstance(adapter, IA3) else theta0 * randn(4, 1, seed=11), 3)
    total = layer.base - theta0 if not isinstance(adapter, IA3) else theta0 * (layer.base - 1)[:, None]
    ours = torch.autograd.grad(layer(x).sin().sum(), [x, *layer.adapter_parameters.values()])
    parts = {key: value.requires_grad_() for key, value in values(layer).items()}
    y = F.linear(x, theta0 + total + dense(parts, theta0) / 3, layer.linear.bias)
    expected = torch.autograd.grad(y.sin().sum(), [x, *parts.values()])
    torch.testing.assert_close(ours, expected)


def test_chain_rule_by_the_formulas_of_the_method() -> None:
    """Of delta: full G; LoRA B^T G and G A^T; (IA)^3 the row sums of G * W0."""
    G = randn(4, 5, seed=70)
    for adapter in ADAPTERS:
        layer = adapted(adapter)
        got = dict(
            zip(
                layer.adapter_parameters,
                torch.autograd.grad(layer.delta(), list(layer.adapter_parameters.values()), G),
                strict=True,
            )
        )
        parts, theta0 = values(layer), layer.linear.weight
        if "tau" in parts:
            expected = {"tau": G}
        elif "A" in parts:
            expected = {"A": parts["B"].T @ G, "B": G @ parts["A"].T}
        else:
            expected = {"l": (G * theta0).sum(1)}
        torch.testing.assert_close(got, expected)


@each_adapter
@pytest.mark.parametrize("strength", [0.01, 1.0, 300.0])
def test_proximal_point_is_the_numeric_minimum(adapter: Adapter, strength: float) -> None:
    """argmin |parts - old|^2 / 2 + sum(c tau^2 / 2 - d tau); LoRA moves B, A is fixed."""
    layer = adapted(adapter)
    theta0, old = layer.linear.weight, values(layer)
    c, d = strength * randn(4, 5, seed=50).square(), strength * randn(4, 5, seed=51)
    moving = "B" if "B" in old else next(iter(old))

    def objective(part: Tensor) -> Tensor:
        tau = dense({**old, moving: part}, theta0)
        return 0.5 * (part - old[moving]).square().sum() + (0.5 * c * tau * tau - d * tau).sum()

    expected = newton(objective, old[moving])
    stationary = torch.autograd.functional.jacobian(objective, expected)
    assert isinstance(stationary, Tensor)
    assert stationary.abs().max() < 1e-9 * max(1, strength)  # the oracle itself is one
    layer.proximal_(c, d)
    torch.testing.assert_close(layer.adapter_parameters[moving].detach(), expected, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(layer.adapter_parameters[key], old[key]) for key in old if key != moving)


@pytest.mark.parametrize("strength", [1e9, 1e12, 1e18, 1e30])
@pytest.mark.parametrize("curved", ["everywhere", "one input", "equal rows of A"])
def test_proximal_step_at_any_strength_is_finite_and_never_longer(strength: float, curved: str) -> None:
    """Systems far beyond what float64 resolves; where there is no curvature nothing moves."""
    layer, width, rank = adapted_to(300, 12, 8), 300, 8
    c = strength * randn(12, width, seed=1).square()
    if curved == "one input":
        c[:, 1:] = 0
    if curved == "equal rows of A":
        layer.adapter_parameters["A"].data[1:] = layer.adapter_parameters["A"].data[:1] * (
            1 + 1e-9 * randn(rank - 1, 1, seed=2)
        )
    c[3] = 0
    old = values(layer)
    layer.proximal_(c, torch.zeros_like(c))
    new = values(layer)["B"]
    assert bool(new.isfinite().all())
    assert bool((new.norm(dim=1) <= old["B"].norm(dim=1) * (1 + 1e-6)).all())
    torch.testing.assert_close(new[3], old["B"][3])
    tau = new @ layer.adapter_parameters["A"].detach()
    assert (
        float((c * tau * tau).sum())
        <= float((c * (old["B"] @ layer.adapter_parameters["A"].detach()).square()).sum()) * 1e-3
    )


def adapted_to(width: int, outputs: int, rank: int) -> AdaptedLinear:
    """A LoRA layer in float64 with random parts."""
    layer = AdaptedLinear("w.weight", nn.Linear(width, outputs, dtype=torch.float64), LoRA(rank), seeded(0))
    layer.adapter_parameters["B"].data = randn(outputs, rank, seed=1)
    return layer


@each_adapter
def test_proximal_step_of_nothing_is_nothing(adapter: Adapter) -> None:
    layer = adapted(adapter)
    old = values(layer)
    layer.proximal_(torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64))
    torch.testing.assert_close(values(layer), old, rtol=1e-14, atol=1e-14)


def test_lora_rank_is_tripled_on_a_fused_qkv_and_never_more_than_the_weight_has() -> None:
    theta0 = torch.zeros(24, 8)
    ranks = {
        (rank, name): LoRA(rank).initial(name, theta0, seeded(0))["A"].shape[0]
        for rank in (2, 5)
        for name in ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.q.weight")
    }
    assert list(ranks.values()) == [6, 2, 2, 8, 5, 5]
    with pytest.raises(InputError, match="rank 0"):
        LoRA(0)


def test_lora_starts_kaiming_uniform() -> None:
    """A in +-1/sqrt(I), as torch's kaiming_uniform_(a=sqrt(5)); the same generator draws the same."""
    theta0 = torch.zeros(300, 400)
    a = LoRA(200).initial("w.weight", theta0, seeded(3))["A"]
    bound = 1 / math.sqrt(400)
    assert a.abs().max() <= bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert torch.equal(a, LoRA(200).initial("w.weight", theta0, seeded(3))["A"])
    assert not torch.equal(a, LoRA(200).initial("w.weight", theta0, seeded(4))["A"])


@pytest.mark.parametrize(("name", "rank"), [("w.weight", 16), ("blocks.0.attn.qkv.weight", 48)])
def test_a_narrow_start_is_shorter_by_the_root_of_the_rank_used(name: str, rank: int) -> None:
    """A in +-1/sqrt(r I), r = 48 on a fused qkv; it is neither compared nor recorded."""
    theta0 = torch.zeros(300, 100)
    wide, narrow = (LoRA(16, narrow=n).initial(name, theta0, seeded(3))["A"] for n in (False, True))
    assert narrow.shape == (rank, 100)
    torch.testing.assert_close(narrow, wide / math.sqrt(rank))
    assert 0.99 / math.sqrt(rank * 100) < float(narrow.abs().max()) <= 1 / math.sqrt(rank * 100)
    assert LoRA(16, narrow=True) == LoRA(16)
    assert str(LoRA(16, narrow=True)) == str(LoRA(16))
    assert adapter_record(LoRA(16, narrow=True)) == {"kind": "lora", "rank": 16}


def test_lora_is_pefts() -> None:
    """Forward and merged weight of PEFT's layer with the same A and B, alpha = r."""
    linear = nn.Linear(6, 4, dtype=torch.float64)
    layer = AdaptedLinear("fc.weight", linear, LoRA(3), seeded(0))
    layer.adapter_parameters["B"].data = randn(4, 3, seed=1)
    with torch.random.fork_rng():
        theirs = nn.Sequential(nn.Linear(6, 4, dtype=torch.float64))
        theirs.load_state_dict({"0.weight": linear.weight, "0.bias": linear.bias})
        wrapped = get_peft_model(theirs, LoraConfig(r=3, lora_alpha=3, target_modules=["0"]))  # pyright: ignore[reportArgumentType]
    peft_layer = wrapped.get_submodule("base_model.model.0")
    with torch.no_grad():
        peft_layer.get_parameter("lora_A.default.weight").copy_(layer.adapter_parameters["A"])
        peft_layer.get_parameter("lora_B.default.weight").copy_(layer.adapter_parameters["B"])
    x = randn(7, 6, seed=2)
    torch.testing.assert_close(layer(x), peft_layer(x), rtol=1e-12, atol=1e-12)
    peft_layer.merge()  # pyright: ignore[reportCallIssue]
    merged = peft_layer.get_parameter("base_layer.weight")
    torch.testing.assert_close(linear.weight + layer.delta(), merged, rtol=1e-12, atol=1e-12)


@each_adapter
def test_attachment_comes_off_again_even_after_an_error(adapter: Adapter) -> None:
    theta0 = backbone(dtype=torch.float64)
    before, x = dict(theta0.model.named_modules()), inputs(2)
    y, state = theta0.features(x), {k: v.clone() for k, v in theta0.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), theta0.attach(adapter) as attachment:
        shake(attachment, 1)
        assert not torch.allclose(theta0.features(x), y)
        raise KeyboardInterrupt
    after = dict(theta0.model.named_modules())
    assert before.keys() == after.keys()
    assert all(after[name] is layer for name, layer in before.items())
    assert torch.equal(theta0.features(x), y)
    assert same(state, theta0.model.state_dict())


@each_adapter
def test_state_and_load_are_inverse(adapter: Adapter) -> None:
    theta0, x = split_backbone(), inputs(2)
    with theta0.attach(adapter, seeded(1)) as attachment:
        shake(attachment, 2)
        state, vector, y = attachment.state(), attachment.vector(), theta0.features(x)
    with theta0.attach(adapter, seeded(5)) as other:
        other.load(state)
        assert same(other.vector(), vector)
        assert torch.equal(theta0.features(x), y)
        with pytest.raises(KeyError):
            other.load(dict(list(state.items())[1:]))
    assert vector.keys() == theta0.trainable.keys()


def test_only_the_parts_are_trainable_and_the_task_loss_never_forms_a_dense_update() -> None:
    """The weights get no gradient, and LoRA saves nothing of the size of a weight for the backward pass."""
    theta0 = backbone(dtype=torch.float64)
    with theta0.attach(LoRA(1)) as attachment:
        shake(attachment, 1)
        parts = list(attachment.parameters())
        assert sum(p.numel() for p in parts) == sum(p.numel() for p in theta0.model.parameters() if p.requires_grad)
        made: list[torch.Size] = []
        weights = {layer.base.data_ptr() for layer in attachment.layers.values()}

        def pack(saved: Tensor) -> Tensor:
            if saved.data_ptr() not in weights:
                made.append(saved.shape)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            theta0.model(inputs(1)).sum().backward()
        assert all(p.grad is not None for p in parts)
    shapes = {tuple(sorted(w.shape)) for w in theta0.trainable.values()}
    assert made
    assert not shapes & {tuple(sorted(s)) for s in made}


def test_a_target_that_is_no_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(TypeError, match="ReLU, expected nn"):
        Attachment(model, {"1.weight": "1"}, LoRA(1), seeded(0))


@each_adapter
def test_nearest_parts_give_back_an_update_of_their_own_kind(adapter: Adapter) -> None:
    layer, other = adapted(adapter), adapted(adapter, seed=50)
    tau = dense(values(layer), layer.linear.weight)
    other.linear.weight.copy_(layer.linear.weight)
    other.start_(tau)
    torch.testing.assert_close(other.delta(), tau)


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (30, 90), (90, 30), (40, 40)])
@pytest.mark.parametrize("kind", ["full rank", "mean of modules", "rank 1", "zero", "tiny", "huge", "steep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_low_rank_update_is_the_best_there_is(shape: tuple[int, int], kind: str, dtype: torch.dtype) -> None:
    """Eckart and Young, by the SVD: what is left over are the singular values that were cut off; A keeps its length."""
    o, i = shape
    tau = randn(o, i, seed=9)
    if kind in ("mean of modules", "rank 1"):
        low = 8 if kind == "mean of modules" else 1
        tau = randn(o, low, seed=1) @ randn(low, i, seed=2) / 4
    elif kind == "steep":
        u, _, v = torch.linalg.svd(tau, full_matrices=False)
        tau = u * 10.0 ** -torch.arange(len(v)).double() @ v
    tau = (tau * {"zero": 0.0, "tiny": 1e-30, "huge": 1e25}.get(kind, 1.0)).to(dtype)
    layer = AdaptedLinear("w.weight", nn.Linear(i, o, dtype=dtype), LoRA(3), seeded(0))
    length = layer.adapter_parameters["A"].norm(dim=1).mean().detach()
    layer.start_(tau)
    size, near = tau.double().norm(), 1e-5 if dtype == torch.float32 else 1e-11
    left_over = torch.linalg.svdvals(tau.double())[3:].square().sum().sqrt()
    off = (
        (layer.adapter_parameters["B"].double() @ layer.adapter_parameters["A"].double() - tau.double()).norm().detach()
    )
    assert float((off - left_over).abs()) <= near * float(size)
    torch.testing.assert_close(layer.adapter_parameters["A"].norm(dim=1).detach(), length.expand(3))


def test_nearest_ia3_update_is_the_least_squares_fit() -> None:
    layer, tau = adapted(IA3()), randn(4, 5, seed=9)
    layer.start_(tau)
    theta0 = layer.linear.weight
    fitted = [
        torch.linalg.lstsq(w[:, None], row[:, None]).solution.squeeze() for w, row in zip(theta0, tau, strict=True)
    ]
    torch.testing.assert_close(layer.adapter_parameters["l"].detach() - 1, torch.stack(fitted).detach())


@each_adapter
@pytest.mark.parametrize("how", REPEATED)
def test_a_weight_used_twice_is_adapted_at_every_place(adapter: Adapter, how: str) -> None:
    """Forward and gradients are those of the dense weight at all of its places; composed, disabled, taken off too."""
    theta0, x = repeated(how), inputs(3)
    plain = theta0.features(x)
    with theta0.attach(adapter, seeded(1)) as attachment:
        shake(attachment, 2)
        total = {name: theta0.trainable[name] * randn(len(w), 1, seed=9) for name, w in theta0.trainable.items()}
        attachment.compose(None if isinstance(adapter, LoRA) else total, 2)
        parts = list(attachment.parameters())
        features = theta0.model(x)
        got = torch.autograd.grad(features.sin().sum(), parts)
        tau = {name: layer.delta() for name, layer in attachment.layers.items()}
        with attachment.disabled():
            assert torch.equal(theta0.features(x), plain)
        moved = {
            f"{theta0.targets[name]}.weight": w + ((0 if isinstance(adapter, LoRA) else total[name]) + tau[name]) / 2
            for name, w in theta0.trainable.items()
        }
    assert torch.equal(theta0.features(x), plain)
    dense = torch.func.functional_call(theta0.model, moved, (x,))
    torch.testing.assert_close(features, dense)
    torch.testing.assert_close(got, torch.autograd.grad(dense.sin().sum(), parts))


@pytest.mark.parametrize("how", REPEATED)
def test_a_weight_used_twice_is_learned_merged_and_kept(how: str, tmp_path: Path) -> None:
    pool = learn(repeated(how, torch.float32), stream(2), adapter=Full(), training=QUICK, out=tmp_path / "p")
    theta0 = repeated(how, torch.float32)
    model, images = pool.mean(), stream(2)[0].test.tensor(GREY)
    mean = {n: (pool.vector("task01")[n] + pool.vector("task02")[n]) / 2 for n in pool.vector("task01")}
    moved = {f"{theta0.targets[n]}.weight": w + mean[n] for n, w in theta0.trainable.items()}
    expected = torch.func.functional_call(theta0.model, moved, (GREY.normalize(images),))
    torch.testing.assert_close(model.network(GREY.normalize(images)), expected)
    model.save(tmp_path / "m")
    again = ComposedModel.load(tmp_path / "m", theta0)
    torch.testing.assert_close(again.logits(images), model.logits(images))


@each_adapter
def test_layers_may_have_the_names_of_an_adapters_own_parts(adapter: Adapter) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "parts", "base"):
                self.add_module(name, nn.Linear(64, 64))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            for layer in self.children():
                x = layer(x).tanh()
            return x

    theta0 = Backbone(redraw(Named(), 1, torch.float64), name="named", preprocessing=GREY, targets=["*"])
    assert list(theta0.trainable) == ["weight.weight", "parts.weight", "base.weight"]
    with theta0.attach(adapter, seeded(1)) as attachment:
        shake(attachment, 2)
        found = theta0.features(inputs(3))
        moved = {name: w + attachment.vector()[name] for name, w in theta0.trainable.items()}
    dense = torch.func.functional_call(theta0.model, moved, (inputs(3),))
    torch.testing.assert_close(found, dense)


def test_ia3_refuses_a_total_that_is_no_factor_per_row() -> None:
    """It would be projected, and the composed model trained through would be another than the one asked for."""
    theta0 = backbone()
    name = "blocks.1.mlp.fc1.weight"
    with theta0.attach(IA3()) as attachment:
        rows = {n: w * randn(len(w), 1, seed=3, dtype=w.dtype) for n, w in theta0.trainable.items()}
        attachment.compose(TaskVector(rows), 3)
        low_rank = {n: d + 1e-2 * randn(*d.shape, seed=4, dtype=d.dtype) * (n == name) for n, d in rows.items()}
        with pytest.raises(InputError, match=rf"{name}: .*no factor a row.*LoRA or full"):
            attachment.compose(TaskVector(low_rank), 3)
        attachment.start_at(TaskVector(low_rank))  # the nearest is asked for by name
