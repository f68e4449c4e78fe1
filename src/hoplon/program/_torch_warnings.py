"""Warnings that torch gives about itself and that no user of hoplon could act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Leave out torch's warnings of its own tree specs and of the bookkeeping of its own recurrent layers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings(
            "ignore", message=r".*_flat_weights.* were assigned during export", category=UserWarning
        )
        yield
