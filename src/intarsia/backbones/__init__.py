"""theta0: pre-trained networks, how they are loaded, and how they want their images."""

from intarsia.backbones import torchvision_guard  # noqa: F401  must come before timm
