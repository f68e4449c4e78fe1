"""What torch says and writes amiss: warnings about itself that nobody could act on, names that are no Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from keyword import iskeyword

import torch.fx.graph


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Leave out torch's warnings of its own tree specs and files, and of what hoplon puts back after an export.

    From then on it also writes all names of modules as Python, see :func:`_spelled`.
    """
    torch.fx.graph._format_target = _spelled
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
        for text in ("The tensor attributes? .*assigned during export", "No complete tensor found in the group"):
            warnings.filterwarnings("ignore", message=text, category=UserWarning)
        yield


def _spelled(base: str, target: str) -> str:
    """Code that gets the module of this name, which may be anything without a dot.

    For ``class`` in a ``ModuleDict``, or a name with a quote or a line end, torch writes what is no Python; what it
    writes rightly is written as before.
    """
    for name in target.split("."):
        plain = name.isidentifier() and not iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base
