"""Models and data by name: embedded digits, files, the papers' networks, torchvision, the user's own factories."""

from __future__ import annotations

from hoplon.zoo.datasets.driving import TrivialErrors, training_angle, trivial_errors
from hoplon.zoo.datasets.torchvision import gtsrb, imagenet, original_cifar10, original_mnist
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.networks.cifar_resnet import CifarResNet
from hoplon.zoo.networks.lenet_digits import LeNet, lenet_digits
from hoplon.zoo.registry import data, data_names, model, model_names
from hoplon.zoo.resolve import resolve_data, resolve_model
from hoplon_studies.networks.architectures import ARCHITECTURES, Architecture
from hoplon_studies.training.recipes import RECIPES, Recipe
from hoplon_studies.training.weights import note_data, trained, weights_path

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
