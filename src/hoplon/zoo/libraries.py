"""Models of other libraries by name: one table of prefixes, each with its extra."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from hoplon.errors import HoplonError, no_match, said
from hoplon.program.given.example import Example
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.seeding import seeded
from hoplon.zoo.torchvision_ops import import_torchvision

_PIXELS = {"inception_v3": 299}
_TOKENS = 16  # of an example text


@dataclass(frozen=True)
class Library:
    """Models that another package makes.

    ``placeholder``: of the name after the prefix; ``extra``: of hoplon, that installs the package; ``make``: called
    with the name and a seed for random weights; ``names``: those that there are, where they can be listed.
    """

    placeholder: str
    sentence: str
    extra: str
    make: Callable[[str, int], tuple[nn.Module, Any]]
    names: Callable[[], list[str]] = list


def library_model(prefix: str, name: str, *, seed: int) -> ZooModel:
    """The model of a library, in eval mode, random where it is not in a folder of the user's.

    Raises:
        HoplonError: the package is not installed, names its extra; or it has no such model.
    """
    with seeded(seed):
        module, example = LIBRARIES[prefix].make(name, seed)
    return ZooModel(name=f"{prefix}:{name}", module=module.eval(), example=example, any_size=True)


def required(package: str, extra: str, what: str) -> ModuleType:
    """An optional package.

    Raises:
        HoplonError: it is not installed; names the extra.
    """
    if package != "torchvision":
        with suppress(HoplonError):  # others import it, and beside another build of torch it needs help
            import_torchvision()
    try:
        return import_torchvision() if package == "torchvision" else importlib.import_module(package)
    except ImportError as error:
        raise HoplonError(
            f"expected {package} for {what}, got none ({said(error)}); pip install 'hoplon[{extra}]'"
        ) from (error)


class Detector(nn.Module):
    """A detector of torchvision, which takes a list of pictures, called with a batch of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Any:
        """Boxes, labels and scores for each of the pictures, shape ``(batch, 3, rows, columns)``."""
        return self.model(list(pictures))


def _pictures(seed: int, *shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def _torchvision_names() -> list[str]:
    return cast(list[str], required("torchvision", "vision", "a torchvision model").models.list_models())


def _torchvision(name: str, seed: int) -> tuple[nn.Module, Any]:
    names = _torchvision_names()
    if name not in names:
        raise no_match("torchvision model", name, names)
    models = import_torchvision().models
    kind = models.get_model_builder(name).__module__
    # These two warn unless told that the slow initialisation of their papers is meant.
    options: dict[str, Any] = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    if ".detection" in kind or ".segmentation" in kind:
        options["weights_backbone"] = None
    if ".optical_flow" in kind or ".video" in kind or ".quantization" in kind:
        raise HoplonError(
            f"expected a torchvision model of pictures in float, got {name} of {kind}; make it in a factory, "
            "file.py:factory"
        )
    module: nn.Module = models.get_model(name, weights=None, **options)
    pixels = _PIXELS.get(name, 224)
    return Detector(module) if ".detection" in kind else module, _pictures(seed, 3, pixels, pixels)


def _timm_names() -> list[str]:
    return cast(list[str], required("timm", "timm", "a timm model").list_models())


def _timm(name: str, seed: int) -> tuple[nn.Module, Any]:
    timm = required("timm", "timm", "a timm model")
    if not timm.is_model(name):
        raise no_match("timm model", name, timm.list_models())
    module = timm.create_model(name, pretrained=False)
    return module, _pictures(seed, *timm.data.resolve_model_data_config(module)["input_size"])


def _ultralytics(name: str, seed: int) -> tuple[nn.Module, Any]:
    ultralytics = required("ultralytics", "ultralytics", "an ultralytics model")
    if Path(name).suffix or Path(name).name != name:
        raise HoplonError(
            f"expected the name of an ultralytics network, such as yolov8n, got {name}; weights in a .pt file are a "
            "pickle, which is never executed: load them in a factory that returns (YOLO(path).model.eval(), example)"
        )
    try:
        return ultralytics.YOLO(f"{name}.yaml").model, _pictures(seed, 3, 320, 320)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise HoplonError(
            f"expected the name of an ultralytics network, such as yolov8n, got {name}: {said(error)}"
        ) from (error)


def _transformers(folder: str, seed: int) -> tuple[nn.Module, Any]:
    transformers = required("transformers", "hf", "a transformers model")
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise HoplonError(
            f"expected a folder with config.json, as save_pretrained writes it, got hf:{folder}; nothing is downloaded"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        kind = getattr(transformers, next(iter(config.architectures or ()), "AutoModel"), transformers.AutoModel)
        module = kind.from_pretrained(path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise HoplonError(
            f"expected a transformers model with weights in safetensors in {folder}, got: {said(error)}"
        ) from error
    for part in (module.config, module.config.get_text_config()):
        part.use_cache = False  # of keys and values, which is no tensor that a run is judged by
    return module, Example(kwargs=_call_of(module, seed))


def _call_of(module: Any, seed: int) -> dict[str, Tensor]:
    """Inputs that a transformers model takes, by what it calls its main one."""
    config, name = module.config, module.main_input_name
    drawn = torch.Generator().manual_seed(seed)
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 224
        rows, columns = size if isinstance(size, list | tuple) else (size, size)
        return {name: torch.randn(2, getattr(vision, "num_channels", 3), rows, columns, generator=drawn)}
    if name == "input_values":
        return {name: torch.randn(2, 16_000, generator=drawn)}  # a second of sound
    if name != "input_ids":
        raise HoplonError(
            f"expected a transformers model of texts, pictures or sounds, got one of {name}; use a factory"
        )
    tokens = torch.randint(0, config.get_text_config().vocab_size, (2, _TOKENS), generator=drawn)
    call = {name: tokens, "attention_mask": torch.ones_like(tokens)}
    if config.is_encoder_decoder:
        call["decoder_input_ids"] = tokens[:, : _TOKENS // 2].clone()
    return call


LIBRARIES: Mapping[str, Library] = {
    "torchvision": Library(
        "NAME",
        "torchvision, random weights: classification, segmentation, detection",
        "vision",
        _torchvision,
        _torchvision_names,
    ),
    "timm": Library("NAME", "timm, random weights", "timm", _timm, _timm_names),
    "hf": Library("FOLDER", "a transformers model in a folder, weights in safetensors", "hf", _transformers),
    "ultralytics": Library(
        "NAME", "the network inside an ultralytics model, random weights", "ultralytics", _ultralytics
    ),
}
"""By prefix, in front of a colon."""
