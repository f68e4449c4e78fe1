"""Models and data by name: embedded digits, files, the papers' networks, torchvision, the user's own factories."""

from __future__ import annotations

from hoplon.zoo.architectures import ARCHITECTURES, Architecture
from hoplon.zoo.cifar import CifarResNet
from hoplon.zoo.driving import TrivialErrors, training_angle, trivial_errors
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.lenet import LeNet, lenet_digits
from hoplon.zoo.originals import gtsrb, imagenet, original_cifar10, original_mnist
from hoplon.zoo.recipes import RECIPES, Recipe
from hoplon.zoo.registry import data, data_names, model, model_names
from hoplon.zoo.resolve import resolve_data, resolve_model
from hoplon.zoo.weights import note_data, trained, weights_path

__all__ = [
    "ARCHITECTURES",
    "RECIPES",
    "Architecture",
    "CifarResNet",
    "LeNet",
    "Recipe",
    "TrivialErrors",
    "ZooData",
    "ZooModel",
    "data",
    "data_names",
    "gtsrb",
    "imagenet",
    "lenet_digits",
    "model",
    "model_names",
    "note_data",
    "original_cifar10",
    "original_mnist",
    "resolve_data",
    "resolve_model",
    "trained",
    "training_angle",
    "trivial_errors",
    "weights_path",
]
