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


PROGRAM = """
import json, sys
from intarsia.cli.main import main
for spec in sys.argv[1:]:
    try:
        main(["ls", "--backbone", spec, "--json"])
    except SystemExit as stopped:
        print(f"code {stopped.code}")
    print("end", flush=True)
    print("end", file=sys.stderr, flush=True)
"""


def ls(specs: list[str], home: Path, endpoint: str, *, offline: bool = False) -> list[tuple[str, str]]:
    """What ``intarsia ls`` prints and complains of for each, in a process: the library reads its address once."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-c", PROGRAM, *specs]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    said = [stream.split("end\n")[:-1] for stream in (done.stdout, done.stderr)]
    return list(zip(*said, strict=True))


@pytest.mark.parametrize(
    ("network", "specs"), [("Dinov2", ["hf/maker/net", "hf/maker/net@v1"]), ("vit", ["timm/hf-hub:maker/net"])]
)
def test_a_backbone_of_the_hub_is_fetched_once_and_found_again_offline(
    network: str, specs: list[str], tmp_path: Path
) -> None:
    NETWORKS[network].save(tmp_path / "net")
    with hub({"maker/net": tmp_path / "net"}) as (address, asked):
        *first, unknown = ls([*specs, specs[0].replace("maker/net", "maker/none")], tmp_path / "home", address)
        for printed, complaint in first:
            assert json.loads(printed)["features"] == 32, complaint
        assert any("model.safetensors" in request for request in asked)
        assert unknown[0].strip() == "code 2"
        assert "maker/none" in unknown[1]
        assert "Traceback" not in unknown[1]
    again = ls(specs, tmp_path / "home", address, offline=True)
    assert [printed for printed, _ in again] == [printed for printed, _ in first], again


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
        env["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody is there
        assert load("hf:maker/animals@v1?config=fine:image,label").stdout == "carp cat dog\n"
        complaint = load("hf:maker/plants").stderr
        assert "hf:maker/plants cannot be loaded" in complaint
        assert "network" in complaint
        assert "Retrying" not in complaint


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


def test_without_a_network_it_is_said_at_once(tmp_path: Path) -> None:
    specs = ["hf/maker/net", "timm/vit_tiny_patch16_224", "timm/hf-hub:maker/net"]
    for spec, (printed, complaint) in zip(specs, ls(specs, tmp_path / "home", "http://127.0.0.1:9"), strict=True):
        assert printed.strip() == "code 2"
        assert spec in complaint
        assert "network" in complaint
        assert complaint.strip().count("\n") == 0
        assert "Retrying" not in complaint
