"""Models and data by name: embedded digits, CIFAR-10 from files, torchvision, the user's own factories."""

from __future__ import annotations

from hoplon.zoo.cifar import CifarResNet
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.lenet import LeNet, lenet_digits
from hoplon.zoo.registry import data, data_names, model, model_names
from hoplon.zoo.resolve import resolve_data, resolve_model

__all__ = [
    "CifarResNet",
    "LeNet",
    "ZooData",
    "ZooModel",
    "data",
    "data_names",
    "lenet_digits",
    "model",
    "model_names",
    "resolve_data",
    "resolve_model",
]
