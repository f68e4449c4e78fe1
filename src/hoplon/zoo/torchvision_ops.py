"""Importing torchvision where its compiled operators do not fit the installed torch."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hoplon.errors import HoplonError

# torchvision's Python code registers shape functions for `nms` and `qnms` while it is imported, which fails
# unless the operators are known. Its wheel on PyPI is compiled against a CUDA build of torch: beside a CPU
# build its library cannot be loaded, the operators stay unknown, and `import torchvision` ends in "operator
# torchvision::nms does not exist". They are declared here, and those that detectors need are written out.
# A library is kept for as long as the process lives, since its declarations end with it.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The module ``torchvision``, with ``nms`` and ``roi_align`` in Python where its own cannot load.

    Raises:
        HoplonError: torchvision is not installed.
    """
    if "torchvision" not in sys.modules:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise HoplonError("expected torchvision for a torchvision model, got none; pip install 'hoplon[vision]'")
        if not _declared and not _operators_load(Path(spec.origin).parent):
            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in _SCHEMAS:
                library.define(schema)
            library.impl("nms", non_maximum_suppression, "CompositeExplicitAutograd")
            library.impl("roi_align", _roi_align, "CompositeExplicitAutograd")
            _declared.append(library)
    torchvision = importlib.import_module("torchvision")
    if _declared:
        extension: Any = importlib.import_module("torchvision.extension")
        extension._has_ops = lambda: True
    return torchvision


def non_maximum_suppression(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that overlap no kept box of a higher score by more than a threshold, as ``torchvision.ops.nms``.

    Args:
        boxes: shape ``(n, 4)``, corners x1, y1, x2, y2.
        scores: shape ``(n,)``.
        iou_threshold: share of the union of two boxes that they may have in common.
    Returns:
        Indices of the kept boxes by falling score, int64.
    Example:
        >>> boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
        >>> non_maximum_suppression(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)
        tensor([1, 2])
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[int] = []
    suppressed = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not suppressed[index]:
            kept.append(index)
            sides = torch.minimum(boxes[index, 2:], boxes[:, 2:]) - torch.maximum(boxes[index, :2], boxes[:, :2])
            common = sides.clamp(min=0).prod(1)
            suppressed |= common / (areas[index] + areas - common) > iou_threshold
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _roi_align(*args: Any) -> Tensor:
    written_out: Tensor = importlib.import_module("torchvision.ops.roi_align")._roi_align(*args)
    return written_out


def _operators_load(package: Path) -> bool:
    """True if torchvision's compiled library loads into this torch and brings its operators."""
    for library in (*package.glob("_C*.so"), *package.glob("_C*.pyd"), *package.glob("_C*.dylib")):
        try:
            torch.ops.load_library(library)
        except OSError:  # compiled for another torch
            continue
    return hasattr(torch.ops.torchvision, "nms")
