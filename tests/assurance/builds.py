"""Builds of LeNet on digits: a hardened one, and four that a gate has to block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hoplon as hp
from hoplon.zoo.resolve import resolve_data, resolve_model

INPUTS = 100
SITES = {"values": hp.Values(kind=("conv", "linear")), "memory": hp.Memory(kind=("conv", "linear"), buffers=False)}


@cache
def data() -> Any:
    return resolve_data("digits")


@cache
def lenet() -> nn.Module:
    return resolve_model("lenet-digits").module.eval()


def captured(model: nn.Module) -> hp.Program:
    return hp.capture(model.eval(), data().held_out.x[:8], name="lenet-digits")


def campaign(model: nn.Module, target: str, protect: Callable[[hp.Program], tuple[Any, ...]]) -> hp.Campaign:
    program = captured(model)
    inputs = data().held_out.sample(INPUTS, seed=0)
    return hp.Campaign(program, inputs, sites=SITES[target], protections=protect(program))


def ranger(program: hp.Program, *, widened: float = 0.0) -> tuple[Any, ...]:
    ranges = hp.profile_ranges(program, data().calibration.sample(500, seed=0))
    bounds = {site: bound.widened(widened) for site, bound in ranges.bounds.items()}
    return (hp.Ranger(replace(ranges, bounds=bounds)),)


def guard(program: hp.Program) -> tuple[Any, ...]:
    return (hp.KnownBits(),)


def nothing(program: hp.Program) -> tuple[Any, ...]:
    return ()


class InPlace(nn.Module):
    """LeNet with its second convolution in bfloat16, under the name that it has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in copy.deepcopy(model).named_children():
            self.add_module(name, child.to(torch.bfloat16) if name == "conv2" else child)

    def forward(self, x: Tensor) -> Tensor:
        for name, child in self.named_children():
            x = child(x.to(torch.bfloat16)).float() if name == "conv2" else child(x)
        return x


@cache
def fragile() -> nn.Module:
    """LeNet trained further so that its ReLUs let everything through: what they masked before now counts."""
    torch.manual_seed(0)
    model, known = copy.deepcopy(lenet()).train(), data().calibration
    negative: list[Tensor] = []
    for layer in model.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda module, given, out: negative.append(F.relu(0.2 - out).mean()))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(300):
        rows = torch.arange(step * 64, (step + 1) * 64) % len(known)
        negative.clear()
        loss = F.cross_entropy(model(known.x[rows]), known.y[rows])
        loss = loss + sum(negative[:-1])  # not the logits
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer in model.children():
        layer._forward_hooks.clear()
    return model.eval()
