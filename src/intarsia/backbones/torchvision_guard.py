"""Makes ``torchvision`` importable beside a CPU build of torch; call ``import_torchvision`` before timm is imported.

The torchvision wheel of the package registry is built for CUDA. Beside a CPU torch its compiled operators do not load,
and its import then dies with ``operator torchvision::nms does not exist`` because it registers a shape rule for an
operator nobody declared. timm imports torchvision but calls none of its compiled operators. So, only when that very
error occurs, the missing operators are declared (schema only, no kernel: calling one still raises) and the import is
made once more. Any other error is passed on. With torchvision comes ``torch._dynamo``, which takes as long to load as
torch: so it is imported where a network of timm is made, and not before.
"""

import importlib
import re
import sys

import torch

_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}


_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")


_declared: list[torch.library.Library] = []  # a Library undoes its declarations when it is collected


def import_torchvision() -> None:
    """Import torchvision, declaring operator schemas its compiled part failed to declare.

    Raises:
        ImportError: torchvision is absent.
        RuntimeError: its import fails for a reason other than an undeclared operator named in this file.
    """
    for _ in range(len(_SCHEMAS) + 1):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None or missing[1] not in _SCHEMAS:
                raise
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(_SCHEMAS[missing[1]])
            _declared.append(library)
    raise RuntimeError(
        "torchvision still misses operators that were declared; reinstall torch and torchvision as a pair"
    )
