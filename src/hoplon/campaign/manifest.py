"""The manifest of a run: what decides its records, and what computed them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of what a figure depends on: hoplon, Python, torch, numpy, scipy, polars."""
    found = {"python": platform.python_version()}
    for package in ("hoplon", "torch", "numpy", "scipy", "polars"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found
