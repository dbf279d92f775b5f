"""Tiny networks of timm and transformers, with random weights, in the folders that their libraries save."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from intarsia.backbones.torchvision_guard import import_torchvision

import_torchvision()
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
WINDOWS = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 2],
}
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
RATIO = {key: value for key, value in SHAPE.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
STAGES = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}


@dataclass(frozen=True)
class Network:
    """One network, and what of it is trained by default, canonical names without their numbers."""

    library: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    attention: str = "qkv proj"
    mlp: str = "fc1 fc2"

    def save(self, folder: Path) -> str:
        """Write it into a folder; its spec."""
        folder.mkdir(parents=True)
        return self._save_timm(folder) if self.library == "timm" else self._save_transformers(folder)

    def _save_timm(self, folder: Path) -> str:
        import timm  # noqa: PLC0415

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(self.name, pretrained=False, num_classes=0, **self.arguments)
        loud(model)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
        shown = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "num_classes": 0}
        config = {"architecture": self.name, "num_classes": 0, "model_args": self.arguments, "pretrained_cfg": shown}
        (folder / "config.json").write_text(json.dumps(config))
        return f"timm/local-dir:{folder}"

    def _save_transformers(self, folder: Path) -> str:
        import transformers  # noqa: PLC0415

        made = getattr(transformers, f"{self.name}Model")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = made(made.config_class(**self.arguments))
        loud(model)
        model.save_pretrained(folder)
        processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
        processor.save_pretrained(folder)
        return f"hf/{folder}"


@torch.no_grad()
def loud(model: nn.Module) -> None:
    """Weights large enough that every layer is heard: scales of residual branches start near zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 and ("gamma" in name or "lambda" in name or "ls1" in name or "ls2" in name):
            parameter.fill_(0.5)
        elif parameter.ndim < 2 and "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif parameter.ndim >= 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)


SPLIT, GATED, PROJECTIONS = "q k v proj", "fc1_g fc1_x fc2", "down_proj gate_proj up_proj"
NETWORKS = {
    "vit": Network("timm", "vit_tiny_patch16_224", SMALL),
    "deit3": Network("timm", "deit3_small_patch16_224", SMALL),
    "beit": Network("timm", "beit_base_patch16_224", SMALL),
    "beitv2": Network("timm", "beitv2_base_patch16_224", SMALL),
    "eva": Network("timm", "eva_large_patch14_196", SMALL),
    "eva02": Network("timm", "eva02_tiny_patch14_224", SMALL),
    "eva02 base": Network("timm", "eva02_base_patch14_224", SMALL, SPLIT, GATED),
    "swin": Network("timm", "swin_tiny_patch4_window7_224", WINDOWS),
    "swinv2": Network("timm", "swinv2_tiny_window8_256", WINDOWS),
    "reg4_gap": Network("timm", "vit_betwixt_patch16_reg4_gap_256", SMALL),
    "dinov2 of timm": Network("timm", "vit_small_patch14_dinov2", SMALL),
    "siglip": Network("timm", "vit_base_patch16_siglip_224", SMALL),
    "clip": Network("timm", "vit_base_patch16_clip_224", SMALL),
    "dinov3": Network("timm", "vit_small_patch16_dinov3", SMALL),
    "dinov3 plus": Network("timm", "vit_small_plus_patch16_dinov3", SMALL, mlp=GATED),
    "flexivit": Network("timm", "flexivit_small", SMALL),
    "aimv2": Network("timm", "aimv2_large_patch14_224", SMALL, mlp=GATED),
    "rope": Network("timm", "vit_small_patch16_rope_224", SMALL),
    "cait": Network("timm", "cait_xxs24_224", SMALL, "k proj q qkv v"),
    "convnext": Network("timm", "convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, ""),
    "ViT": Network("transformers", "ViT", SHAPE, SPLIT),
    "DeiT": Network("transformers", "DeiT", SHAPE, SPLIT),
    "BEiT": Network("transformers", "Beit", SHAPE, SPLIT),
    "Dinov2": Network("transformers", "Dinov2", RATIO, SPLIT),
    "Dinov2 gated": Network(
        "transformers", "Dinov2", {**RATIO, "use_swiglu_ffn": True}, SPLIT, "down_proj gate_proj up_proj"
    ),
    "Dinov2WithRegisters": Network("transformers", "Dinov2WithRegisters", RATIO, SPLIT),
    "DINOv3ViT": Network("transformers", "DINOv3ViT", SHAPE, SPLIT, "down_proj up_proj"),
    "DINOv3ViT gated": Network(
        "transformers", "DINOv3ViT", {**SHAPE, "use_gated_mlp": True}, SPLIT, "down_proj gate_proj up_proj"
    ),
    "CLIPVision": Network("transformers", "CLIPVision", SHAPE, SPLIT),
    "SiglipVision": Network("transformers", "SiglipVision", SHAPE, SPLIT),
    "Swin": Network("transformers", "Swin", STAGES, SPLIT),
    "Swinv2": Network("transformers", "Swinv2", STAGES, SPLIT),
}
