"""Training a small network the same way every time, without touching global random state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs

Progress = Callable[[int, int, float], None]
"""Called after each epoch with the number of epochs done, their total, and the epoch's mean loss."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A scope in which torch's CPU generator starts from ``seed``; its earlier state is put back afterwards.

    Layers initialise their weights from the global generator and cannot be given another one.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     torch.equal(torch.rand(2), first)
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """A scope in which torch computes on one thread, so that sums are added in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
