"""Importing torchvision where its compiled operators do not fit the installed torch."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from hoplon.errors import HoplonError

# torchvision's Python code registers shape functions for `nms` and `qnms` while it is imported, which fails
# unless the operators are known. Its wheel on PyPI is compiled against a CUDA build of torch: beside a CPU
# build its library cannot be loaded, the operators stay unknown, and `import torchvision` ends in "operator
# torchvision::nms does not exist". Classification models use neither, so knowing their signatures is enough.
# A library is kept for as long as the process lives, since its declarations end with it.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The module ``torchvision``, with ``nms`` and ``qnms`` declared, without a body, where they cannot load.

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
            _declared.append(library)
    return importlib.import_module("torchvision")


def _operators_load(package: Path) -> bool:
    """True if torchvision's compiled library loads into this torch and brings its operators."""
    for library in (*package.glob("_C*.so"), *package.glob("_C*.pyd"), *package.glob("_C*.dylib")):
        try:
            torch.ops.load_library(library)
        except OSError:  # compiled for another torch
            continue
    return hasattr(torch.ops.torchvision, "nms")
