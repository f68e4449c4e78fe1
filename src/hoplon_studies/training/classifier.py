"""Training a small network the same way every time, without touching global random state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.zoo.datasets._digits import digits
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.networks.lenet_digits import LeNet
from hoplon.zoo.seeding import Progress, one_thread, seeded


def train_classifier(
    module: nn.Module,
    inputs: Inputs,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 50,
    learning_rate: float = 2e-3,
    progress: Progress | None = None,
) -> None:
    """Fit ``module`` in place to the labels of ``inputs`` (cross-entropy, Adam) and leave it in eval mode.

    The order of the samples, and dropout, follow from ``seed`` alone; the caller's random state is left as it
    was. Training runs on one thread, since sums are added in another order on more, so the weights do not
    depend on the number of cores; the caller's number of threads is put back. Meant for networks that train in
    seconds.

    Raises:
        DataError: ``inputs`` has no labels.
    Source:
        D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """
    if inputs.y is None:
        raise DataError(f"expected labels to train with, got the unlabelled inputs {inputs.name!r}")
    labels, count = inputs.y, len(inputs)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate)
    module.train()
    with seeded(seed), one_thread(), torch.enable_grad():
        for epoch in range(epochs):
            total = 0.0
            for rows in torch.randperm(count, generator=generator).split(batch_size):
                loss = F.cross_entropy(module(*inputs.take(rows).tensors), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(rows)
            if progress is not None:
                progress(epoch + 1, epochs, total / count)
    optimiser.zero_grad()
    module.eval()


def train_lenet_digits(*, seed: int) -> ZooModel:
    """LeNet trained on the training split of the digits in seconds; seed 0 gave the weights that come with hoplon."""
    train = digits().calibration
    with seeded(seed):
        net = LeNet()
    train_classifier(net, train, epochs=40, seed=seed)
    return ZooModel(name="lenet-digits", module=net, example=train.tensors[0][:4].clone())
