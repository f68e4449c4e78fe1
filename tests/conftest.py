"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def hoplon_data() -> Path:
    """The folder with the CIFAR-10 files: HOPLON_DATA, or ``../shared/data`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HOPLON_DATA", default))
    if not (folder / "cifar10-test.npz").is_file():
        pytest.skip(f"needs cifar10-test.npz in {folder}; set HOPLON_DATA to the folder that holds it")
    return folder
