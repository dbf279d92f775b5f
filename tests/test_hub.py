"""Backbones of a hub: a server on this machine that speaks its routes, and no network at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import hub
from networks import NETWORKS
from test_sources import configured

from intarsia.cli.main import main

pytestmark = pytest.mark.slow


def ls(backbone: str, home: Path, endpoint: str, *, offline: bool = False) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-m", "intarsia", "ls", "--backbone", backbone, "--json"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("network", "spec"), [("Dinov2", "hf/maker/net"), ("Dinov2", "hf/maker/net@v1"), ("vit", "timm/hf-hub:maker/net")]
)
def test_a_backbone_of_the_hub_is_fetched_once_and_found_again_offline(network: str, spec: str, tmp_path: Path) -> None:
    NETWORKS[network].save(tmp_path / "net")
    with hub({"maker/net": tmp_path / "net"}) as (address, asked):
        first = ls(spec, tmp_path / "home", address)
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout)["features"] == 32
        assert any("model.safetensors" in request for request in asked)
        unknown = ls(spec.replace("maker/net", "maker/none"), tmp_path / "home", address)
        assert unknown.returncode == 2
        assert "maker/none" in unknown.stderr
        assert "Traceback" not in unknown.stderr
    again = ls(spec, tmp_path / "home", address, offline=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_a_configuration_of_a_data_set_is_fetched(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    configured(tmp_path / "animals")
    with hub({"maker/animals": tmp_path / "animals"}) as (address, asked):
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

        def load(spec: str) -> subprocess.CompletedProcess[str]:
            code = f"import intarsia; print(*intarsia.TaskStream.load({spec!r}).classes)"
            return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)

        found = load("hf:maker/animals@v1?config=fine:image,label")
        assert found.stdout == "carp cat dog\n", found.stderr
        assert not any(request.endswith(".parquet") for request in asked if "coarse" in request)
        assert "hf:maker/animals has several configurations: coarse, fine" in load("hf:maker/animals").stderr


def test_ls_lists_what_would_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = NETWORKS["DINOv3ViT gated"].save(tmp_path / "net")
    found = main(["ls", "--backbone", spec, "--image-size", "48"])
    assert found is None
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "attention blocks.*.attn.k (2)",
        "mlp blocks.*.mlp.gate_proj (2)",
        "size 48",
        "mean [",
        "std [",
        "features 32",
    ):
        assert part in said
    main(["ls", "--backbone", spec, "--network.targets", "*attn.q", "--json"])
    assert json.loads(capsys.readouterr().out)["trained"] == {"attention": ["blocks.0.attn.q", "blocks.1.attn.q"]}


@pytest.mark.parametrize("spec", ["hf/maker/net", "timm/vit_tiny_patch16_224", "timm/hf-hub:maker/net"])
def test_without_a_network_it_is_said_at_once(spec: str, tmp_path: Path) -> None:
    found = ls(spec, tmp_path / "home", "http://127.0.0.1:9")
    assert found.returncode == 2
    assert spec in found.stderr
    assert "network" in found.stderr
    assert found.stderr.count("\n") == 1
    assert "Retrying" not in found.stderr
