from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from hoplon.zoo.datasets.digits import digits


def test_two_parts_hold_every_digit_once():
    data = digits()
    assert (len(data.calibration), len(data.held_out)) == (1000, 797)
    ours = torch.cat([data.calibration.x, data.held_out.x]).reshape(-1, 64).mul(16).int()
    labelled = torch.cat([ours, torch.cat([data.calibration.y, data.held_out.y]).int().unsqueeze(1)], dim=1)
    bundled = load_digits()
    theirs = [(*image, label) for image, label in zip(bundled.data.astype(int).tolist(), bundled.target, strict=True)]
    assert sorted(map(tuple, labelled.tolist())) == sorted(theirs)


def test_form_and_range():
    data = digits()
    for part in (data.calibration, data.held_out):
        assert part.x.shape[1:] == (1, 8, 8)
        assert part.x.dtype == torch.float32
        assert (part.x.min().item(), part.x.max().item()) == (0.0, 1.0)
        assert part.y.dtype == torch.int64
    assert data.classes == tuple("0123456789")
    assert (data.calibration.name, data.held_out.name) == ("digits, training split", "digits, held-out split")


def test_split_is_stratified():
    data = digits()
    train, held_out = data.calibration.y.bincount(), data.held_out.y.bincount()
    share = train / (train + held_out)
    assert ((share - 1000 / 1797).abs() < 1 / 174).all()  # no class is off by a whole sample: the rarest has 174


def test_split_is_always_the_same():
    first, second = digits(), digits()
    assert first.calibration.digest() == second.calibration.digest()
    assert first.held_out.digest() == second.held_out.digest()
