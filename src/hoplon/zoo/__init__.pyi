from .datasets._driving import (
    TrivialErrors as TrivialErrors,
    trivial_errors as trivial_errors,
)
from .datasets.torchvision import (
    gtsrb as gtsrb,
    imagenet as imagenet,
    original_cifar10 as original_cifar10,
    original_mnist as original_mnist,
)
from .entries import ZooData as ZooData, ZooModel as ZooModel
from .networks.cifar_resnet import CifarResNet as CifarResNet
from .networks.lenet_digits import LeNet as LeNet
from .pretrained import lenet_digits as lenet_digits
from .registry import (
    DataSource as DataSource,
    ModelSource as ModelSource,
    data as data,
    data_names as data_names,
    model as model,
    model_names as model_names,
)
from .resolve import resolve_data as resolve_data, resolve_model as resolve_model
