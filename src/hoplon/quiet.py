"""The one warning that torch gives about itself and that no user of hoplon could act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Leave out torch's warning of its own use of its own tree specs (export, decomposition, copying a graph)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
        yield
