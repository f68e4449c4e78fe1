from __future__ import annotations

import pytest

from hoplon import zoo
from hoplon.errors import HoplonError


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(HoplonError, match=r"no zoo model matches 'resnet-20-cifar10'; near names: resnet20-cifar10,"):
        zoo.model("resnet-20-cifar10")
    with pytest.raises(HoplonError, match=r"no zoo data matches 'cifar'; near names: cifar10"):
        zoo.data("cifar")


def test_every_listed_name_is_known(monkeypatch, hoplon_data):
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    for name in zoo.model_names():
        entry = zoo.model(name)
        assert entry.name == name
        assert len(entry.example) >= 2
    for name in zoo.data_names():
        assert zoo.data(name).name == name
