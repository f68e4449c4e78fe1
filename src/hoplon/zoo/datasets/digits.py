"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hoplon.program.inputs import Inputs
from hoplon.zoo.entries import ZooData

_TRAIN_COUNT = 1000


def digits() -> ZooData:
    """The 1,797 digits of 8 x 8 pixels in a fixed split: 1,000 to train and calibrate with, 797 held out.

    Inputs are float32 of shape ``(n, 1, 8, 8)`` in [0, 1], labels int64. The split is random and stratified
    by class (scikit-learn's ``train_test_split`` with ``random_state=0``), so both parts hold digits of the
    same thirteen writers: accuracy on the held-out part says nothing about new writers.

    Source:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998, in the copy that scikit-learn bundles.
    Example:
        >>> data = digits()
        >>> data.calibration.x.shape, len(data.held_out)
        (torch.Size([1000, 1, 8, 8]), 797)
    """
    bunch = load_digits()
    train, held_out = train_test_split(
        range(len(bunch.target)), train_size=_TRAIN_COUNT, stratify=bunch.target, random_state=0
    )
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    return ZooData(
        name="digits",
        calibration=Inputs(x[train], y[train], name="digits, training split"),
        held_out=Inputs(x[held_out], y[held_out], name="digits, held-out split"),
        classes=tuple(str(name) for name in bunch.target_names),
    )
