"""The injectors that ``replay.py`` compares with: each runs given faults in its own way and gives the outputs.

Value faults: a batch, at most one fault in each of its rows, so that every injector makes one forward for as many
faults as the batch holds. Memory faults: one fault, then a forward per batch of inputs.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shot:
    """One flip: in a convolution (counted in the order of modules), in a row of the batch (value faults), at an index.

    ``index``: channel, row, column of the output; or the four axes of the weight. ``value``: what the word becomes.
    """

    layer: int
    row: int
    index: tuple[int, ...]
    flip: int
    value: float


class Injector(ABC):
    """Faults in the outputs or the weights of a model's convolutions."""

    name: str

    def __init__(self, model: nn.Module, batch: int, sample: tuple[int, ...]) -> None:
        self.model, self.batch, self.sample = model, batch, sample
        self.layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        self.device = self.layers[0].weight.device
        self.output_shapes: list[tuple[int, ...]] = []
        seen = [
            layer.register_forward_hook(
                lambda module, given, output: self.output_shapes.append(tuple(output.shape[1:]))
            )
            for layer in self.layers
        ]
        with torch.inference_mode():
            model(torch.zeros(1, *sample, device=self.device))
        for handle in seen:
            handle.remove()

    @abstractmethod
    def values(self, x: Tensor, shots: Sequence[Shot]) -> Tensor:
        """Outputs of a batch under value faults in distinct rows."""

    @abstractmethod
    def memory(self, batches: Sequence[Tensor], shot: Shot) -> list[Tensor]:
        """Outputs of all batches under one fault in a weight."""


def _flipped(value: Tensor, flip: int) -> Tensor:
    signed = flip - (1 << 32) if flip >> 31 else flip
    return (value.view(torch.int32) ^ signed).view(torch.float32)


class Hooks(Injector):
    """By hand: a hook on every struck layer flips bits in place; weights are flipped and put back."""

    name = "hooks"

    def values(self, x: Tensor, shots: Sequence[Shot]) -> Tensor:
        by_layer: dict[int, list[Shot]] = {}
        for shot in shots:
            by_layer.setdefault(shot.layer, []).append(shot)

        def hook_of(mine: list[Shot]) -> Any:
            def hook(module: nn.Module, given: Any, output: Tensor) -> None:
                for shot in mine:
                    where = (shot.row, *shot.index)
                    output[where] = _flipped(output[where], shot.flip)

            return hook

        handles = [self.layers[layer].register_forward_hook(hook_of(mine)) for layer, mine in by_layer.items()]
        try:
            with torch.inference_mode():
                return self.model(x)  # type: ignore[no-any-return]
        finally:
            for handle in handles:
                handle.remove()

    def memory(self, batches: Sequence[Tensor], shot: Shot) -> list[Tensor]:
        weight = self.layers[shot.layer].weight.detach()
        before = weight[shot.index].clone()
        weight[shot.index] = _flipped(before, shot.flip)
        try:
            with torch.inference_mode():
                return [self.model(x) for x in batches]
        finally:
            weight[shot.index] = before


class PyTorchFI(Injector):
    """PyTorchFI 0.6.0: a deep copy of the model for every declaration, hooks on every convolution."""

    name = "pytorchfi"

    def __init__(self, model: nn.Module, batch: int, sample: tuple[int, ...]) -> None:
        super().__init__(model, batch, sample)
        core = importlib.import_module("pytorchfi.core")
        with torch.inference_mode():
            self.core = core.fault_injection(
                model, batch, list(sample), [nn.Conv2d], use_cuda=self.device.type == "cuda"
            )

    def values(self, x: Tensor, shots: Sequence[Shot]) -> Tensor:
        with torch.inference_mode():
            broken = self.core.declare_neuron_fi(
                batch=[shot.row for shot in shots],
                layer_num=[shot.layer for shot in shots],
                dim1=[shot.index[0] for shot in shots],
                dim2=[shot.index[1] for shot in shots],
                dim3=[shot.index[2] for shot in shots],
                value=[shot.value for shot in shots],
            )
            outputs: Tensor = broken(x)
            self.core.fi_reset()
        return outputs

    def memory(self, batches: Sequence[Tensor], shot: Shot) -> list[Tensor]:
        kernel, channel, height, width = ([part] for part in shot.index)
        with torch.inference_mode():
            broken = self.core.declare_weight_fi(
                layer_num=[shot.layer], k=kernel, dim1=channel, dim2=height, dim3=width, value=[shot.value]
            )
            return [broken(x) for x in batches]


class Mrfi(Injector):
    """MRFI 2.1.0: hooks on every module, told before each pass where to put what."""

    name = "mrfi"

    def __init__(self, model: nn.Module, batch: int, sample: tuple[int, ...]) -> None:
        super().__init__(model, batch, sample)
        package = importlib.import_module("mrfi.mrfi")
        package.add_function("given_positions", lambda shape, positions: positions)
        package.add_function("given_values", lambda x_in, values: torch.tensor(values, dtype=x_in.dtype))
        self.outputs = self._armed(package, {"type": "activation_out"})
        self.weights = self._armed(package, {"type": "weight", "name": ["weight"]})
        self.output_settings = [
            self.outputs.get_activation_configs(f"{part}.args", is_out=True) for part in ("selector", "error_mode")
        ]
        self.weight_settings = [self.weights.get_weights_configs(f"{part}.args") for part in ("selector", "error_mode")]

    def _armed(self, package: Any, kind: dict[str, Any]) -> Any:
        selector = {"method": "given_positions", "positions": []}
        mode = {"method": "given_values", "values": []}
        fault = {**kind, "enabled": True, "module_type": "Conv2d", "selector": selector, "error_mode": mode}
        return package.MRFI(copy.deepcopy(self.model), package.EasyConfig({"faultinject": [fault]}))

    def values(self, x: Tensor, shots: Sequence[Shot]) -> Tensor:
        positions: dict[int, list[int]] = {}
        values: dict[int, list[float]] = {}
        for shot in shots:
            shape = (self.batch, *self.output_shapes[shot.layer])
            positions.setdefault(shot.layer, []).append(_flat((shot.row, *shot.index), shape))
            values.setdefault(shot.layer, []).append(shot.value)
        with _set(self.output_settings, positions, values), torch.inference_mode():
            return self.outputs(x)  # type: ignore[no-any-return]

    def memory(self, batches: Sequence[Tensor], shot: Shot) -> list[Tensor]:
        place = _flat(shot.index, tuple(self.layers[shot.layer].weight.shape))
        with _set(self.weight_settings, {shot.layer: [place]}, {shot.layer: [shot.value]}), torch.no_grad():
            return [self.weights(x) for x in batches]


@contextmanager
def _set(settings: Sequence[Any], positions: dict[int, list[int]], values: dict[int, list[float]]) -> Iterator[None]:
    selectors, modes = settings
    for layer, places in positions.items():
        selectors[layer].positions, modes[layer].values = places, values[layer]
    try:
        yield
    finally:
        for layer in positions:
            selectors[layer].positions, modes[layer].values = [], []


def _flat(index: Sequence[int], shape: Sequence[int]) -> int:
    place = 0
    for position, size in zip(index, shape, strict=True):
        place = place * size + position
    return place


def available(names: Sequence[str]) -> tuple[list[type[Injector]], dict[str, str]]:
    """The injectors that can run here, and why the others cannot."""
    needed = {"pytorchfi": ("pytorchfi",), "mrfi": ("mrfi", "yaml"), "hooks": ()}
    kinds = {kind.name: kind for kind in (PyTorchFI, Mrfi, Hooks)}
    missing = {
        name: f"{', '.join(absent)} not installed; pip install --no-deps pytorchfi==0.6.0 mrfi==2.1.0 pyyaml"
        for name in names
        if (absent := [part for part in needed[name] if importlib.util.find_spec(part) is None])
    }
    return [kinds[name] for name in names if name not in missing], missing
