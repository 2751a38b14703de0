"""The one place that imports torchvision, and the cure for a CPU torch beside a CUDA build of torchvision.

There is no CPU build of torchvision on every index; the other build's C++ operators then do not load, and
`import torchvision` raises "operator torchvision::nms does not exist". Nothing here uses those
operators, so declaring the two names that the import asks for is enough. Where the real ones load,
nothing is touched.
"""

import importlib.util

import torch


def _load_real_operators() -> bool:
    """Load torchvision's own C++ library, as its import would; say whether nms is there."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("torchvision is not installed: pip install -r requirements.txt")
    for folder in spec.submodule_search_locations:
        for suffix in ("_C.so", "_C.pyd"):
            try:
                torch.ops.load_library(f"{folder}/{suffix}")
            except OSError:
                continue
    return hasattr(torch.ops.torchvision, "nms")


if not _load_real_operators():
    _declared = torch.library.Library("torchvision", "DEF")  # must stay alive
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision
from torchvision import datasets, utils
from torchvision.transforms import v2

__all__ = ["datasets", "torchvision", "utils", "v2"]
