"""Networks of timm and transformers, each at a tiny size: what is trained acts, learns, merges, and is found again."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import NETWORKS
from torch.nn import functional as F

from cases import ADAPTERS, QUICK, randn, seeded
from intarsia import Backbone, ComposedModel, Pool, TaskStream, learn
from intarsia.backbones.libraries.architecture import build
from intarsia.curvature.fisher import diagonal_fisher
from intarsia.evaluation.answers import logits
from intarsia.merging.merge import merge

pytestmark = pytest.mark.slow


def pictures() -> TaskStream:
    """Two tasks of two classes, three channels, 32 pixels: noise alone, or the reference heads would leave no loss."""

    def part(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(4).repeat(count)
        return torch.randint(0, 256, (len(labels), 3, 32, 32), generator=seeded(seed)).byte(), labels

    return TaskStream.from_arrays(part(8, 0), part(2, 1), [f"class{i}" for i in range(4)], tasks=2)


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A network's name here, and its spec."""
    folder = tmp_path_factory.mktemp("networks") / "theta0"
    yield request.param, NETWORKS[request.param].save(folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_what_is_trained_is_all_of_attention_and_mlp_and_has_a_fisher(network: tuple[str, str]) -> None:
    name, spec = network
    theta0 = Backbone.load(spec)
    leaves = {target.removesuffix(".weight").rpartition(".")[2] for target in theta0.targets}
    assert leaves == {*NETWORKS[name].attention.split(), *NETWORKS[name].mlp.split()}
    weight, images = randn(3, theta0.width, seed=0).float(), randn(5, 3, 32, 32, seed=1).float()
    fisher = diagonal_fisher(theta0, lambda x: F.linear(x, weight), [images], generator=seeded(0))
    assert all(float(f.sum()) > 0 for f in fisher.sums.values())


def test_its_fisher_is_that_of_images_alone(network: tuple[str, str]) -> None:
    """Exact Fisher of three images = sum of the squared gradients of each, by autograd on the weights."""
    theta0 = Backbone.load(network[1])
    weight, images = randn(2, theta0.width, seed=0).float() * 0.3, randn(3, 3, 32, 32, seed=1).float()
    found = diagonal_fisher(theta0, lambda x: F.linear(x, weight), [images], estimator="exact")
    expected = {name: torch.zeros_like(w) for name, w in theta0.weights.items()}
    for w in theta0.weights.values():
        w.requires_grad_(True)
    for image in images.split(1):
        log_p = F.linear(theta0.model(image), weight).log_softmax(1)[0]
        for c in range(2):
            slopes = torch.autograd.grad(log_p[c], list(theta0.weights.values()), retain_graph=True)
            for name, g in zip(expected, slopes, strict=True):
                expected[name] += log_p[c].detach().exp() * g.square()
    for name, f in expected.items():
        torch.testing.assert_close(found.sums[name], f, rtol=2e-3, atol=1e-6 + 1e-4 * float(f.max()))


@pytest.mark.parametrize("adapter", ADAPTERS, ids=[a.kind for a in ADAPTERS])
def test_it_learns_merges_and_is_found_again_elsewhere(
    network: tuple[str, str], adapter: object, tmp_path: Path
) -> None:
    theta0 = Backbone.load(network[1])
    before = {name: w.clone() for name, w in theta0.model.state_dict().items()}
    quick = replace(QUICK, epochs=1)
    pool = learn(theta0, pictures(), out=tmp_path / "pool", adapter=adapter, training=quick)  # pyright: ignore
    assert all(torch.equal(w, before[name]) for name, w in theta0.model.state_dict().items())
    images = randn(3, 3, 32, 32, seed=2).float()
    for task in pool.tasks:
        module = pool.module(task)
        merged = merge(theta0, pool.adapter, [module], {task: 1.0})
        with theta0.attach(pool.adapter) as attachment:
            attachment.load(module.vector)
            adapted = theta0.features(images)
            assert all(float(tau.abs().sum()) > 0 for tau in attachment.vector().values())
        assert not torch.allclose(adapted, theta0.features(images), rtol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(merged.eval()(images), adapted, rtol=1e-3, atol=1e-4)
    model = pool.mean()
    model.save(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere" / "model")
    found = ComposedModel.load(tmp_path / "elsewhere" / "model")
    task = pictures()[0]
    torch.testing.assert_close(logits(found, task), logits(model, task), rtol=1e-4, atol=1e-4)
    assert Pool.open(tmp_path / "pool").backbone.hash == theta0.hash


def test_the_page_says_what_is_trained_of_each() -> None:
    page = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
    for network in NETWORKS.values():
        cells = [" ".join(f"`{leaf}`" for leaf in kind.split()) or "-" for kind in (network.attention, network.mlp)]
        name = network.name if network.library == "timm" else f"{network.name}Model"
        row = rf"\| {network.library} \| `{name}`[^|]* \| {re.escape(cells[0])} \| {re.escape(cells[1])} \|"
        assert re.search(row, page), row


def test_its_architecture_is_built_again_without_the_folder(network: tuple[str, str]) -> None:
    theta0 = Backbone.load(network[1])
    assert theta0.architecture is not None
    again = build(theta0.architecture)
    again.load_state_dict(theta0.model.state_dict(), assign=True)
    images = randn(2, 3, 32, 32, seed=3).float()
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images), theta0.model(images), rtol=1e-5, atol=1e-5)
