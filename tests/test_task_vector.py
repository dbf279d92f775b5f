"""The algebra of task vectors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cases import positive, vectors
from intarsia import TaskVector

factors = st.floats(-4, 4, allow_nan=False)


def flat(tau: TaskVector) -> Tensor:
    return torch.cat([tau[name].flatten() for name in sorted(tau)])


@given(seed=st.integers(0, 1000), x=factors, y=factors)
def test_sums_and_multiples_are_those_of_the_flat_vectors(seed: int, x: float, y: float) -> None:
    a, b = vectors(2, seed)
    torch.testing.assert_close(flat(x * a + b * y), x * flat(a) + y * flat(b), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(flat(a - b), flat(a) - flat(b), rtol=0, atol=0)
    torch.testing.assert_close(flat(-a), -flat(a), rtol=0, atol=0)


@given(seed=st.integers(0, 1000), x=factors)
def test_inner_product_is_bilinear_symmetric_and_gives_the_norm(seed: int, x: float) -> None:
    a, b, c = vectors(3, seed)
    metric = positive(a, seed)
    diagonal = flat(TaskVector(metric))
    torch.testing.assert_close(a.inner(b), flat(a) @ flat(b))
    torch.testing.assert_close(a.inner(b, metric), (flat(a) * diagonal) @ flat(b))
    torch.testing.assert_close(a.inner(b, metric), b.inner(a, metric))
    torch.testing.assert_close((x * a + c).inner(b, metric), x * a.inner(b, metric) + c.inner(b, metric))
    torch.testing.assert_close(a.norm(metric) ** 2, a.inner(a, metric))


def test_cosine() -> None:
    a, b = vectors(2)
    torch.testing.assert_close(a.cosine(3.0 * a), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(a.cosine(-0.5 * a), -torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(a.cosine(b), torch.cosine_similarity(flat(a), flat(b), dim=0))
    assert float(a.cosine(0.0 * b)) == 0


def test_single_precision_is_summed_in_double() -> None:
    ones = TaskVector({"w": torch.full((1000, 1001), 1e-3)})
    expected = float(torch.tensor(1e-3, dtype=torch.float32)) ** 2 * 1000 * 1001
    assert float(ones.inner(ones)) == pytest.approx(expected, rel=1e-12)


def test_different_weights_or_shapes_are_refused() -> None:
    a, _ = vectors(2)
    with pytest.raises(ValueError, match=r"'b\.weight' is in one of them only"):
        _ = a + TaskVector({"a.weight": a["a.weight"]})
    with pytest.raises(ValueError, match=r"b\.weight: shapes \(2, 5\) and \(5, 2\) differ"):
        a.inner({**a, "b.weight": a["b.weight"].T})


def test_is_a_mapping_that_later_changes_of_its_source_do_not_reach() -> None:
    source = {"w": torch.ones(2, 3)}
    tau = TaskVector(source)
    source["v"] = torch.ones(1)
    assert list(tau) == ["w"]
    assert len(tau) == 1
    assert repr(tau) == "TaskVector(1 weights, norm 2.449)"
