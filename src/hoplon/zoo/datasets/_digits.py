"""Handwritten digits that come with hoplon: real data without a download."""

from __future__ import annotations

from pathlib import Path

import torch

from hoplon.program.inputs import Inputs
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import read_arrays

_FILE = Path(__file__).with_name("digits.npz")


def digits() -> ZooData:
    """The 1,797 digits of 8 x 8 pixels in a fixed split: 1,000 to train and calibrate with, 797 held out.

    Inputs are float32 of shape ``(n, 1, 8, 8)`` in [0, 1], labels int64. The split is random and stratified
    by class (its indices are in the file), so both parts hold digits of the same thirteen writers: accuracy on
    the held-out part says nothing about new writers.

    Source:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998, in the copy that scikit-learn bundles (CC BY 4.0).
    Example:
        >>> data = digits()
        >>> data.calibration.x.shape, len(data.held_out)
        (torch.Size([1000, 1, 8, 8]), 797)
    """
    arrays = read_arrays(_FILE, ("x", "y", "calibration", "held_out"))
    x = torch.from_numpy(arrays["x"]).float().div(16).unsqueeze(1)
    y, train, held_out = (torch.from_numpy(arrays[name]).long() for name in ("y", "calibration", "held_out"))
    return ZooData(
        name="digits",
        calibration=Inputs(x[train], y[train], name="digits, training split"),
        held_out=Inputs(x[held_out], y[held_out], name="digits, held-out split"),
        classes=tuple("0123456789"),
    )
