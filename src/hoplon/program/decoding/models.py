"""Language models with a cache of keys and values, called the same way whatever they are."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from hoplon.errors import CaptureError, failure_of

Cache = list[tuple[Tensor, Tensor]]
"""By layer, keys and values of the tokens so far, each ``(batch, heads, length, width)``; empty before the first."""


@dataclass(frozen=True, eq=False)
class CausalModel(ABC):
    """A model that gives logits of the next token and a cache that has grown by the tokens it was called with."""

    module: nn.Module

    @abstractmethod
    def __call__(self, tokens: Tensor, cache: Cache, *, everywhere: bool = False) -> tuple[Tensor, Cache]:
        """Run the model as generation runs it; the cache that is given stays as it is.

        Args:
            tokens: int64, shape ``(batch, length)``.
            cache: of the tokens before.
            everywhere: logits of all these tokens are wanted, not of the last one alone.
        Returns:
            Logits, shape ``(batch, length or 1, vocabulary)``, and the cache with these tokens at its end.
        """

    @abstractmethod
    def generate(self, prompt: Tensor, new_tokens: int, stops: Sequence[int]) -> Tensor | None:
        """The tokens that the user's own greedy ``generate`` adds to one prompt, ``(1, length)``; None without one."""

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens after which its own generation ends."""
        return ()


@final
@dataclass(frozen=True, eq=False)
class PlainModel(CausalModel):
    """A module that is called with tokens and a cache, None at first, and gives logits and a cache of pairs."""

    def __call__(self, tokens: Tensor, cache: Cache, *, everywhere: bool = False) -> tuple[Tensor, Cache]:
        """As :class:`CausalModel`."""
        logits, grown = self.module(tokens, tuple(cache) if cache else None)
        return logits, [(keys, values) for keys, values in grown]

    def generate(self, prompt: Tensor, new_tokens: int, stops: Sequence[int]) -> Tensor | None:
        """As :class:`CausalModel`, of a module with ``generate(tokens, new_tokens, stops=...)``."""
        own = getattr(self.module, "generate", None)
        return None if own is None else own(prompt, new_tokens, stops=tuple(stops))


@final
@dataclass(frozen=True, eq=False)
class TransformersModel(CausalModel):
    """A causal model of Hugging Face transformers.

    ``keywords``: those with which its own ``generate`` calls it, for a prompt and for one more token.
    """

    keywords: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module, prompt: Tensor) -> TransformersModel:
        """Look how the model's own ``generate`` calls it."""
        seen: list[dict[str, Any]] = []
        watched = module.register_forward_pre_hook(lambda _, args, given: seen.append(dict(given)), with_kwargs=True)
        try:
            cls(module, {}).generate(prompt, 2, ())
        finally:
            watched.remove()
        return cls(module, {name: None if isinstance(value, Tensor) else value for name, value in seen[0].items()})

    def __call__(self, tokens: Tensor, cache: Cache, *, everywhere: bool = False) -> tuple[Tensor, Cache]:
        """As :class:`CausalModel`."""
        from transformers import DynamicCache

        begin = cache[0][0].shape[2] if cache else 0
        end = begin + tokens.shape[1]
        places = torch.arange(begin, end, device=tokens.device)
        known = {
            "input_ids": tokens,
            "position_ids": places.unsqueeze(0).expand(len(tokens), -1),
            "cache_position": places,
            "attention_mask": torch.ones(len(tokens), end, dtype=torch.int64, device=tokens.device),
            self._holder: DynamicCache(cache) if cache else DynamicCache(config=self.module.config),
        }
        if everywhere:
            known["logits_to_keep"] = 0
        output = self.module(**{name: known.get(name, value) for name, value in self.keywords.items()})
        held = output[self._holder]
        return output.logits, [(layer.keys, layer.values) for layer in held.layers]

    @property
    def _holder(self) -> str:
        """The keyword of the cache, which was renamed."""
        return "cache" if "cache" in inspect.signature(self.module.forward).parameters else "past_key_values"

    def generate(self, prompt: Tensor, new_tokens: int, stops: Sequence[int]) -> Tensor:
        """As :class:`CausalModel`."""
        module: Any = self.module
        settings = copy.deepcopy(module.generation_config)
        settings.max_new_tokens, settings.do_sample, settings.use_cache = new_tokens, False, True
        settings.eos_token_id = list(stops) or None
        found: Tensor = module.generate(prompt, generation_config=settings)
        return found[:, prompt.shape[1] :]

    @property
    def stops(self) -> tuple[int, ...]:
        """As :class:`CausalModel`: those of its generation settings."""
        module: Any = self.module
        own = module.generation_config.eos_token_id
        return () if own is None else (own,) if isinstance(own, int) else tuple(own)


def causal_model(module: nn.Module, prompt: Tensor) -> CausalModel:
    """The model, called as its kind is called.

    Raises:
        CaptureError: it is neither called with tokens and a cache nor of Hugging Face transformers, or fails.
    """
    config = getattr(module, "config", None)
    try:
        with torch.inference_mode():
            if config is not None and hasattr(config, "use_cache") and hasattr(module, "generate"):
                found: CausalModel = TransformersModel.of(module, prompt)
            else:
                found = PlainModel(module)
            logits, cache = found(prompt, [])
    except Exception as error:
        raise CaptureError(
            f"expected a causal model of transformers, or a module that takes (tokens, cache) and gives (logits, cache "
            f"of one pair of keys and values per layer), got from {type(module).__name__} {failure_of(error)}"
        ) from error
    length = prompt.shape[1]
    shapes = [tuple(held.shape) for pair in cache for held in pair]
    if logits.dim() != 3 or not shapes or any(len(shape) != 4 or shape[2] != length for shape in shapes):
        raise CaptureError(
            f"expected logits (batch, length, vocabulary) and keys and values (batch, heads, {length}, width), got "
            f"{tuple(logits.shape)} and {shapes}"
        )
    return found
