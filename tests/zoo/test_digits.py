from __future__ import annotations

import torch

from hoplon.zoo.datasets._digits import digits

# of scikit-learn 1.9's load_digits and train_test_split(train_size=1000, stratify=y, random_state=0)
DIGESTS = (
    "645f39f473b405b6f0b15383b8d7056a52a0158f95d7074d0a75cbf73334b7f4",
    "c15492b17f1c4a6011b4ce4d47581ac3b3e245ab35762dcf3bb6b15f0f887888",
)


def test_two_parts_hold_every_digit_once():
    data = digits()
    assert (len(data.calibration), len(data.held_out)) == (1000, 797)
    ours = torch.cat([data.calibration.x, data.held_out.x]).reshape(-1, 64).mul(16)
    assert ours.sum().item() == 561_718
    labels = torch.cat([data.calibration.y, data.held_out.y])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len({tuple(row) for row in ours.int().tolist()}) == 1797  # no two images are equal


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
    assert (first.calibration.digest(), first.held_out.digest()) == DIGESTS
    assert (second.calibration.digest(), second.held_out.digest()) == DIGESTS
