"""Warnings that torch gives about itself and that no user of hoplon could act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Leave out torch's warnings of its own tree specs and files, and of what hoplon puts back after an export."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
        for text in ("The tensor attributes? .*assigned during export", "No complete tensor found in the group"):
            warnings.filterwarnings("ignore", message=text, category=UserWarning)
        yield
