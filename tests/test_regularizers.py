"""ITA, IEL and the head's regularizer: closed forms against autograd of their definitions."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cases import ADAPTERS, KINDS, backbone, inputs, newton, positive, randn, seeded, shake, split_backbone, vectors
from intarsia import IA3, IEL, ITA, Full, InputError, LoRA, TaskVector
from intarsia.adapters import Adapter, Attachment
from intarsia.curvature.fisher import DiagonalMetric
from intarsia.regularizers.choices import Step
from intarsia.regularizers.head import head_step
from intarsia.regularizers.quadratic import Quadratic

each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)
seeds = st.integers(0, 10_000)


def omega(taus: Sequence[Mapping[str, Tensor]], fisher: Mapping[str, Tensor]) -> Tensor:
    """The gap by its definition, pair by pair, at w = 1/T."""
    pairs = [(a, b) for i, a in enumerate(taus) for b in taus[i + 1 :]]
    total = torch.zeros((), dtype=torch.float64)
    for a, b in pairs:
        total = total + sum((f * (a[n] - b[n]).square()).sum() for n, f in fisher.items())
    return 0.5 * total / len(taus) ** 2


def sum_of(taus: Sequence[TaskVector]) -> TaskVector:
    total = taus[0]
    for tau in taus[1:]:
        total = total + tau
    return total


def regularizers(theta0: Mapping[str, Tensor], strength: float) -> tuple[Quadratic, Quadratic]:
    fisher = positive(theta0, 70)
    total = TaskVector({n: randn(*w.shape, seed=80 + i, dtype=w.dtype) for i, (n, w) in enumerate(theta0.items())})
    return ITA(strength).bind(fisher, total, 4), IEL(strength).bind(fisher, total, 4)


# The rows of docs/method.md section 4


@given(seed=seeds, tasks=st.integers(2, 7), beta=st.floats(0.01, 100))
def test_iel_row_is_beta_t_times_the_gradient_of_the_gap(seed: int, tasks: int, beta: float) -> None:
    taus = vectors(tasks, seed)
    fisher = positive(taus[0], seed)
    last = {n: t.clone().requires_grad_() for n, t in taus[-1].items()}
    exact = torch.autograd.grad(omega([*taus[:-1], last], fisher), list(last.values()))
    penalty = IEL(beta).bind(fisher, sum_of(taus[:-1]), tasks)
    for (name, tau), g in zip(taus[-1].items(), exact, strict=True):
        torch.testing.assert_close(penalty.gradient(name, tau), beta * tasks * g, rtol=1e-10, atol=1e-10)


@given(seed=seeds, tasks=st.integers(2, 7))
def test_iel_value_is_beta_t_times_the_gap_up_to_a_constant(seed: int, tasks: int) -> None:
    *earlier, one, other = vectors(tasks + 1, seed)
    fisher = positive(one, seed)
    penalty = IEL(3.0).bind(fisher, sum_of(earlier), tasks)
    difference = omega([*earlier, one], fisher) - omega([*earlier, other], fisher)
    torch.testing.assert_close(penalty.value(one) - penalty.value(other), 3 * tasks * difference)


@given(seed=seeds, alpha=st.floats(0, 100))
def test_ita_is_the_quadratic_of_the_fisher(seed: int, alpha: float) -> None:
    (tau,) = vectors(1, seed)
    fisher = positive(tau, seed)
    penalty = ITA(alpha).bind(fisher, None, 5)
    torch.testing.assert_close(penalty.value(tau), 0.5 * alpha * tau.norm(fisher) ** 2)
    for name in tau:
        torch.testing.assert_close(penalty.gradient(name, tau[name]), alpha * fisher[name] * tau[name])


@pytest.mark.parametrize("kind", [0, 1])
def test_gradient_is_that_of_the_value(kind: int) -> None:
    tau = {n: t.clone().requires_grad_() for n, t in vectors(1)[0].items()}
    penalty = regularizers(tau, 1.7)[kind]
    expected = torch.autograd.grad(penalty.value(tau), list(tau.values()))
    got = tuple(penalty.gradient(name, t.detach()) for name, t in tau.items())
    torch.testing.assert_close(got, expected)


def test_first_task_has_the_floor_only_and_counts_as_two_for_iel() -> None:
    tau = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(ITA(2.0).bind(None, None, 1).gradient("w", tau), 2e-5 * tau)
    fisher = DiagonalMetric({"w": torch.full((2, 3), 0.25, dtype=torch.float64)})
    torch.testing.assert_close(IEL(2.0).bind(fisher, None, 1).gradient("w", tau), 0.25 * tau)


@pytest.mark.parametrize("strength", [-1e-9, float("nan"), float("inf")])
def test_strengths_that_are_none_are_refused(strength: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        ITA(strength)
    with pytest.raises(InputError, match="beta"):
        IEL(strength)


# Steps


def parts_of(adapter: Attachment) -> list[Tensor]:
    return [part.detach().clone() for part in adapter.parameters()]


def penalty_gradients(adapter: Attachment, penalty: Quadratic) -> list[Tensor]:
    """Autograd of the penalty through a dense tau written out by the adapter's definition."""
    total, parts = torch.zeros((), dtype=torch.float64), []
    for name, layer in adapter.layers.items():
        own = {key: part.detach().clone().requires_grad_() for key, part in layer.adapter_parameters.items()}
        w = layer.linear.weight
        tau = own["tau"] if "tau" in own else own["B"] @ own["A"] if "A" in own else w * own["l"][:, None] - w
        total = total + penalty.value({name: tau})
        parts += own.values()
    return list(torch.autograd.grad(total, parts))


@each_adapter
@pytest.mark.parametrize("kind", [0, 1])
def test_decoupled_step_is_a_gradient_step_through_the_dense_weight(adapter: Adapter, kind: int) -> None:
    theta0 = split_backbone()
    penalty = regularizers(theta0.trainable, 0.01)[kind]
    with theta0.attach(adapter) as attachment:
        shake(attachment, 1)
        old, gradients = parts_of(attachment), penalty_gradients(attachment, penalty)
        assert max(float(g.norm()) for g in gradients) < 100
        penalty.step(attachment, 0.3, "decoupled")
        expected = [p - 0.3 * g for p, g in zip(old, gradients, strict=True)]
        torch.testing.assert_close(parts_of(attachment), expected)


@each_adapter
@pytest.mark.parametrize(("strength", "dtype"), [(1e6, torch.float64), (1e30, torch.float32)])
def test_decoupled_step_clips_each_tensor_to_norm_100(adapter: Adapter, strength: float, dtype: torch.dtype) -> None:
    """The norm is taken in double precision: in single, that of a very large gradient is infinite, and no step left."""
    theta0 = split_backbone(dtype=dtype)
    penalty = regularizers(theta0.trainable, strength)[0]
    with theta0.attach(adapter) as attachment:
        shake(attachment, 1)
        old, gradients = parts_of(attachment), penalty_gradients(attachment, penalty)
        penalty.step(attachment, 0.5, "decoupled")
        for before, after, gradient in zip(old, parts_of(attachment), gradients, strict=True):
            moved = (before - after).flatten().double()
            assert float(moved.norm()) == pytest.approx(50, rel=1e-5)
            assert float(torch.cosine_similarity(moved, gradient.flatten().double(), dim=0)) == pytest.approx(1)


def test_a_large_tensors_gradient_leaves_a_small_ones_step_as_it_is() -> None:
    """One weight's curvature 1e6 times the others': its step is cut, theirs are whole."""
    theta0 = split_backbone()
    metric = positive(theta0.trainable, 70)
    large, *small = metric
    metric[large] *= 1e6
    with theta0.attach(Full()) as attachment:
        shake(attachment, 1)
        old = {name: tau.clone() for name, tau in attachment.vector().items()}
        ITA(0.01).bind(metric).step(attachment, 0.5, "decoupled")
        new = attachment.vector()
        assert float((new[large] - old[large]).norm()) == pytest.approx(50, rel=1e-6)
        for name in small:
            torch.testing.assert_close(new[name], old[name] * (1 - 0.5 * 0.01 * metric[name]))


@each_adapter
@pytest.mark.parametrize("kind", [0, 1])
def test_coupled_gradient_joins_the_loss(adapter: Adapter, kind: int) -> None:
    theta0, x = split_backbone(), inputs(3)
    penalty = regularizers(theta0.trainable, 0.7)[kind]
    with theta0.attach(adapter) as attachment:
        shake(attachment, 1)
        expected = penalty_gradients(attachment, penalty)
        penalty.add_gradient(attachment)
        torch.testing.assert_close([p.grad for p in attachment.parameters()], expected)
        for part in attachment.parameters():
            part.grad = None
        loss = theta0.model(x).square().sum()
        losses = torch.autograd.grad(loss, list(attachment.parameters()), retain_graph=True)
        loss.backward()
        penalty.add_gradient(attachment)
        sums = [a + b for a, b in zip(losses, expected, strict=True)]
        torch.testing.assert_close([p.grad for p in attachment.parameters()], sums)
        with pytest.raises(ValueError, match="add_gradient"):
            penalty.step(attachment, 1.0, "coupled")


@each_adapter
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_proximal_step_is_the_numeric_minimum_of_the_penalty(adapter: Adapter, kind: int, scale: float) -> None:
    theta0 = split_backbone()
    penalty = regularizers(theta0.trainable, 2.0)[kind]
    with theta0.attach(adapter) as attachment:
        shake(attachment, 1)
        name = "blocks.1.attn.proj.weight"
        layer = attachment.layers[name]
        w, old = layer.linear.weight, {k: p.detach().clone() for k, p in layer.adapter_parameters.items()}
        moving = "B" if "B" in old else next(iter(old))

        def objective(part: Tensor) -> Tensor:
            own = {**old, moving: part}
            tau = own["tau"] if "tau" in own else own["B"] @ own["A"] if "A" in own else w * own["l"][:, None] - w
            return 0.5 * (part - old[moving]).square().sum() + scale * penalty.value({name: tau})

        expected = newton(objective, old[moving])
        penalty.step(attachment, scale, "proximal")
        torch.testing.assert_close(layer.adapter_parameters[moving].detach(), expected, rtol=1e-9, atol=1e-11)


def test_proximal_steps_of_full_are_the_formulas_of_the_method() -> None:
    theta0 = split_backbone()
    for penalty, s in zip(regularizers(theta0.trainable, 5.0), (0.4, 0.9), strict=True):
        assert isinstance(penalty.metric, DiagonalMetric)
        with theta0.attach(Full()) as attachment:
            shake(attachment, 1)
            old = {name: tau.clone() for name, tau in attachment.vector().items()}
            penalty.step(attachment, s)
            for name, tau in attachment.vector().items():
                f = penalty.metric[name]
                if penalty.total is None:
                    expected = old[name] / (1 + s * 5 * f)
                else:
                    shift = s * 5 * f * penalty.total[name] / 4
                    expected = (old[name] + shift) / (1 + s * 5 * f * (1 - 1 / 4))
                torch.testing.assert_close(tau, expected)


def test_proximal_step_at_any_strength_ends_in_the_penaltys_own_minimum() -> None:
    """ITA: zero. IEL: S / (T - 1), the mean of the earlier modules."""
    theta0 = split_backbone()
    ita, iel = regularizers(theta0.trainable, 1e14)
    with theta0.attach(Full()) as attachment:
        shake(attachment, 1)
        iel.step(attachment)
        assert iel.total is not None
        for name, tau in attachment.vector().items():
            torch.testing.assert_close(tau, iel.total[name] / 3)
        ita.step(attachment)
        assert float(attachment.vector().norm()) < 1e-9


@each_adapter
@pytest.mark.parametrize("how", ["decoupled", "proximal"])
def test_a_step_of_scale_or_strength_zero_changes_no_bit(adapter: Adapter, how: Step) -> None:
    theta0 = split_backbone()
    strong, none = regularizers(theta0.trainable, 3.0), regularizers(theta0.trainable, 0.0)
    with theta0.attach(adapter) as attachment:
        shake(attachment, 1)
        old = parts_of(attachment)
        for penalty in strong:
            penalty.step(attachment, 0.0, how)
        assert all(torch.equal(p, q) for p, q in zip(old, parts_of(attachment), strict=True))
        for penalty in none:
            penalty.step(attachment, 1.0, how)
        if not (isinstance(adapter, IA3) and how == "proximal"):  # 1 + (l - 1) rounds
            assert all(torch.equal(p, q) for p, q in zip(old, parts_of(attachment), strict=True))


@pytest.mark.parametrize("how", ["decoupled", "coupled", "proximal"])
def test_head_step_is_a_step_on_its_penalty(how: Step) -> None:
    """(lambda_h F + lambda_0) (W - W_ref)^2: the gradient, or the minimum with |W - old|^2 / 2."""
    weight, reference = nn.Parameter(randn(3, 4, seed=1)), randn(3, 4, seed=2)
    fisher, old = randn(3, 4, seed=3).square(), weight.detach().clone()

    def penalty(w: Tensor) -> Tensor:
        return 0.7 * (fisher * (w - reference).square()).sum() + 0.2 * (w - reference).square().sum()

    (gradient,) = torch.autograd.grad(penalty(weight), [weight])
    head_step(weight, reference, fisher, 0.7, 0.2, 0.3, how)
    if how == "coupled":
        torch.testing.assert_close(weight.grad, gradient)
        head_step(weight, reference, fisher, 0.7, 0.2, 0.3, how)
        torch.testing.assert_close(weight.grad, 2 * gradient)
        assert torch.equal(weight, old)
    elif how == "decoupled":
        torch.testing.assert_close(weight.detach(), old - 0.3 * gradient)
    else:
        expected = newton(lambda w: 0.5 * (w - old).square().sum() + 0.3 * penalty(w), old)
        torch.testing.assert_close(weight.detach(), expected)


def test_head_step_is_clipped_to_norm_100() -> None:
    weight, reference = nn.Parameter(randn(3, 4, seed=1)), randn(3, 4, seed=2)
    old = weight.detach().clone()
    head_step(weight, reference, torch.ones(3, 4, dtype=torch.float64), 1e6, 0.0, 0.5, "decoupled")
    assert float((weight.detach() - old).norm()) == pytest.approx(50, rel=1e-6)


# Cost


class Bytes(TorchDispatchMode):
    """Counts the bytes of every new storage that an operation makes, and the most that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = self.alive = self.peak = 0
        self._users: dict[int, int] = {}  # storage -> tensors alive on it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t): t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor) not in given:
                self._see(tensor, new=tensor.untyped_storage()._cdata not in given.values())
        return out

    def _see(self, tensor: Tensor, new: bool) -> None:
        key, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        if new:
            self._users[key] = 0
            self.allocated += size
            self.alive += size
            self.peak = max(self.peak, self.alive)
        if key in self._users:  # a view of something older costs nothing
            self._users[key] += 1
            weakref.finalize(tensor, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            self.alive -= size


def iel_step(adapter: Adapter, tasks: int, how: Step) -> tuple[int, int]:
    """(bytes allocated, most bytes alive) of composing after tasks - 1 modules and one training step."""
    theta0, x, y = backbone(), inputs(4, dtype=torch.float32), torch.tensor([0, 1, 2, 3])
    total: TaskVector | None = None
    for t in range(tasks - 1):  # as the learner does: each module is added and gone
        with theta0.attach(adapter, seeded(t)) as attachment:
            shake(attachment, t, 0.01)
            total = attachment.vector() if total is None else total + attachment.vector()
    penalty = IEL(0.5).bind(positive(theta0.trainable, 1), total, tasks)
    with Bytes() as count, theta0.attach(adapter, seeded(99)) as attachment:
        attachment.compose(total, tasks)
        optimizer = torch.optim.AdamW(attachment.parameters())
        F.cross_entropy(theta0.model(x), y).backward()
        if how == "coupled":
            penalty.add_gradient(attachment)
        optimizer.step()
        if how != "coupled":
            penalty.step(attachment, 0.5, how)
    return count.allocated, count.peak


@each_adapter
@pytest.mark.parametrize("how", ["decoupled", "coupled", "proximal"])
def test_a_step_of_iel_costs_with_50_tasks_what_it_costs_with_2(adapter: Adapter, how: Step) -> None:
    two, fifty = iel_step(adapter, 2, how), iel_step(adapter, 50, how)
    assert two == fifty
    assert two[0] > sum(w.nbytes for w in backbone().trainable.values())  # the measure sees something


def test_the_regularizer_holds_nothing_that_grows_with_the_tasks() -> None:
    """All it is given is one sum and one Fisher, of the trainable weights' size each."""
    for tasks in (2, 50):
        taus = vectors(tasks)
        penalty = IEL().bind(positive(taus[0], 1), sum_of(taus[:-1]), tasks)
        assert isinstance(penalty.metric, DiagonalMetric)
        assert penalty.total is not None
        held = [*penalty.metric.values(), *penalty.total.values()]
        assert sum(t.numel() for t in held) == 2 * sum(t.numel() for t in taus[0].values())


def test_lora_keeps_its_rank_under_every_step() -> None:
    theta0 = split_backbone()
    penalty = regularizers(theta0.trainable, 0.1)[1]
    for how in ("decoupled", "proximal"):
        with theta0.attach(LoRA(2)) as attachment:
            shake(attachment, 1)
            penalty.step(attachment, 1.0, how)
            ranks = {int(torch.linalg.matrix_rank(tau)) for tau in attachment.vector().values()}
        assert ranks == {2}
