"""timm, over whatever torchvision is installed.

The torchvision on the public index is built for CUDA. Over a CPU-only torch its compiled operators cannot be
loaded, and `import torchvision` stops because the operators that it describes (`nms`, `qnms`) do not exist. timm
needs torchvision's transforms only, so declaring the two operators is enough, and a kernel in plain torch makes
non-maximum suppression, hence torchvision's detectors, work as well.

Nothing is declared where the plain import succeeds. Everything in privfm takes timm from here:

>>> from privfm.models.torchvision_shim import timm
>>> "vit_tiny_patch16_224" in timm.list_models()
True
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["non_maximum_suppression", "timm"]

_MISSING = "torchvision::nms does not exist"
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: Any = torch.library.Library  # torch does not type it
_libraries: list[Any] = []  # a library that is collected takes its operators with it


def non_maximum_suppression(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: float
) -> Int[Tensor, " kept"]:
    """Indices of the boxes that survive greedy suppression, best score first.

    Args:
        boxes: corners x1, y1, x2, y2.
        scores: one per box.
        iou_threshold: a box goes when its overlap with a better kept one is above this.

    >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    >>> non_maximum_suppression(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5).tolist()
    [1, 2]
    """
    waiting = scores.argsort(descending=True, stable=True)
    kept = []
    while waiting.numel():
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        waiting = waiting[_overlap(boxes[best], boxes[waiting]) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64, device=boxes.device)


def _overlap(box: Float[Tensor, 4], others: Float[Tensor, "boxes 4"]) -> Float[Tensor, " boxes"]:
    corner = torch.maximum(box[:2], others[:, :2])
    sides = (torch.minimum(box[2:], others[:, 2:]) - corner).clamp(min=0)
    shared = sides.prod(dim=1)
    area = (others[:, 2:] - others[:, :2]).prod(dim=1) + (box[2:] - box[:2]).prod()
    return shared / (area - shared).clamp(min=torch.finfo(box.dtype).tiny)


def _declare_operators() -> None:
    library: Any = _library("torchvision", "FRAGMENT")
    library.define(f"nms{_SIGNATURE}")
    library.define(f"qnms{_SIGNATURE}")
    library.impl("nms", non_maximum_suppression, "CPU")
    _libraries.append(library)


def _allow_declared_nms() -> None:
    """Let torchvision.ops.nms run: it first asks for the compiled operators, which the declared one does without."""
    boxes = importlib.import_module("torchvision.ops.boxes")
    boxes._assert_has_ops = lambda: None  # type: ignore[attr-defined]


def _import_timm() -> ModuleType:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
        _declare_operators()
        importlib.import_module("torchvision")
        _allow_declared_nms()
    return importlib.import_module("timm")


timm = _import_timm()
