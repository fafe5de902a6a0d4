"""Lets torchvision, and so timm, import beside a CPU-only torch.

The published torchvision wheel is built against CUDA torch; beside a CPU-only torch its native library does not load,
and the import of its Python half fails on two operators that the library would have registered. Declaring their schemas
is enough for transforms, models and timm; `torchvision.ops.nms` and `decode_jpeg` stay unavailable.
"""

import importlib
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # an operator lives as long as its Library object


def import_torchvision() -> None:
    """Import torchvision, declaring its missing operators only where the plain import has failed."""
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        importlib.import_module("torchvision")


import_torchvision()
