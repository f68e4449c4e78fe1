"""A small model and its data, as a user gives them to a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.networks import small_data


@pytest.fixture
def small_files(tmp_path: Path) -> tuple[str, str]:
    """A model factory and an ``.npz`` file, as a user would give them."""
    held_out, calibration = small_data()
    arrays = {"x": held_out.x, "y": held_out.y, "x_calibration": calibration.x, "y_calibration": calibration.y}
    np.savez(tmp_path / "data.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    source = "import torch\nfrom tests.support.networks import small_net\n"
    source += "def net():\n    return small_net(), torch.zeros(4, 1, 6, 6)\n"
    (tmp_path / "model.py").write_text(source)
    return f"{tmp_path / 'model.py'}:net", str(tmp_path / "data.npz")
