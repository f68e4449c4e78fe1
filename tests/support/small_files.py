"""A small model and its data as files, as a user gives them to a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.networks import small_data


def write_small_files(folder: Path) -> tuple[str, str]:
    """A model factory and an ``.npz`` file in a folder; returns what a command calls them."""
    held_out, calibration = small_data()
    arrays = {"x": held_out.x, "y": held_out.y, "x_calibration": calibration.x, "y_calibration": calibration.y}
    np.savez(folder / "data.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    source = "import torch\nfrom tests.support.networks import small_net\n"
    source += "def net():\n    return small_net(), torch.zeros(4, 1, 6, 6)\n"
    (folder / "model.py").write_text(source)
    return f"{folder / 'model.py'}:net", str(folder / "data.npz")
