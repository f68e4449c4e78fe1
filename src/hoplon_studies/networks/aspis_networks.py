"""The networks of the Aspis paper for CIFAR-10: torchvision's, with what small images ask to be changed."""

from __future__ import annotations

from typing import Any

from torch import nn

from hoplon.zoo.torchvision_ops import import_torchvision


def vgg19(*, classes: int = 10) -> nn.Module:
    """VGG19 with batch norm for images of 32 pixels: input ``(n, 3, 32, 32)``, output ``(n, classes)`` logits.

    Without batch norm it does not begin to learn in the epochs there are. Its maps end at 1 x 1, so one fully
    connected layer of 512 inputs stands in for the three of ImageNet's.

    Source:
        K. Simonyan and A. Zisserman, ICLR 2015, Table 1, column E; batch norm as in torchvision's ``vgg19_bn``.
    """
    net: nn.Module = _torchvision("vgg19_bn", num_classes=classes, init_weights=True)
    net.avgpool, net.classifier = nn.Identity(), nn.Linear(512, classes)
    return net


def resnet50(*, classes: int = 10) -> nn.Module:
    """ResNet-50 for images of 32 pixels: input ``(n, 3, 32, 32)``, output ``(n, classes)`` logits.

    Its first convolution is of 3 x 3 without a stride, the pooling behind it stays: maps are of 16 x 16 to 2 x 2.

    Source:
        K. He et al., CVPR 2016, Table 1, in torchvision's form (the stride in the 3 x 3 convolutions).
    """
    net: nn.Module = _torchvision("resnet50", num_classes=classes)
    net.conv1 = first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as torchvision draws the others
    return net


def inception_v3(*, classes: int = 10) -> nn.Module:
    """Inception v3 for the smallest images it takes: input ``(n, 3, 75, 75)``, output ``(n, classes)`` logits.

    Without the auxiliary classifier, which inference does not read.

    Source:
        C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016; torchvision's
        form.
    """
    net: nn.Module = _torchvision("inception_v3", num_classes=classes, aux_logits=False, init_weights=False)
    return net


def _torchvision(name: str, **options: Any) -> Any:
    return import_torchvision().models.get_model(name, weights=None, **options)
