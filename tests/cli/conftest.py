"""A small model and its data, as a user gives them to a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_files import write_small_files


@pytest.fixture
def small_files(tmp_path: Path) -> tuple[str, str]:
    """A model factory and an ``.npz`` file, as a user would give them."""
    return write_small_files(tmp_path)
