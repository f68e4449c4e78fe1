"""A small language model that generates text: Llama's layers, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = tuple[tuple[Tensor, Tensor], ...]
"""By layer, keys and values of the tokens so far, each of shape ``(batch, heads, length, width)``."""


class RootMeanSquareNorm(nn.Module):
    """Each vector divided by the root of the mean of its squares, times a learnt factor per element."""

    def __init__(self, width: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Values of the shape of ``x``."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * self.weight


class Attention(nn.Module):
    """Causal attention with rotary positions, over the tokens given and those in the cache."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs for ``x`` of shape ``(batch, length, width)``, and the cache with its keys and values at the end."""
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        query, key = _turned(query, turns), _turned(key, turns)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        if past is None:
            found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        elif x.shape[1] == 1:
            found = F.scaled_dot_product_attention(query, key, value)
        else:
            seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=x.device)
            found = F.scaled_dot_product_attention(query, key, value, seen.tril(past[0].shape[2]))
        return self.output(found.transpose(1, 2).flatten(2)), (key, value)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs of elements ``(i, i + half)`` turned by the angles of their positions."""
    cosine, sine = turns
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class Layer(nn.Module):
    """Attention and a gated feed-forward network, each added to what it reads."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = RootMeanSquareNorm(width), Attention(width, heads)
        self.hidden_norm = RootMeanSquareNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As :class:`Attention`."""
        found, cache = self.attention(self.attention_norm(x), turns, past)
        x = x + found
        y = self.hidden_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), cache


class Decoder(nn.Module):
    """Logits of the next token for each token of a text; about a million weights.

    Args:
        vocabulary: tokens that there are.
        width: of the vectors between layers.
        layers, heads, hidden: layers, heads of their attention, width of their feed-forward network.
        context: tokens of a text at most.
    Source:
        H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971, section 2.2.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        vocabulary: int = 65,
        *,
        width: int = 128,
        layers: int = 5,
        heads: int = 4,
        hidden: int = 344,
        context: int = 512,
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.norm, self.head = RootMeanSquareNorm(width), nn.Linear(width, vocabulary, bias=False)
        half = width // heads // 2
        angles = torch.outer(torch.arange(context), 10_000.0 ** (-torch.arange(half) / half)).repeat(1, 2)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 if parameter.shape[0] == vocabulary else width**-0.5)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Logits and the cache with these tokens at its end.

        Args:
            tokens: int64, shape ``(batch, length)``.
            cache: of the tokens before; None where there are none.
        Returns:
            Logits, shape ``(batch, length, vocabulary)``, and the cache of all tokens.
        """
        begin = 0 if cache is None else cache[0][0].shape[2]
        span = slice(begin, begin + tokens.shape[1])
        turns = self.cosine[span], self.sine[span]
        x, grown = self.embedding(tokens), []
        for number, layer in enumerate(self.layers):
            x, held = layer(x, turns, None if cache is None else cache[number])
            grown.append(held)
        return self.head(self.norm(x)), tuple(grown)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        new_tokens: int,
        *,
        temperature: float = 0.0,
        stops: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens that follow a prompt, one at a time.

        Args:
            tokens: the prompt, int64, shape ``(1, length)``.
            temperature: 0: the likeliest token; above: drawn from the softmax of the logits over it.
            stops: tokens after which generation ends.
            generator: of the draws.
        Returns:
            int64, shape ``(1, at most new_tokens)``.
        """
        found: list[Tensor] = []
        cache: Cache | None = None
        while len(found) < new_tokens and not (found and int(found[-1]) in stops):
            logits, cache = cast("tuple[Tensor, Cache]", self(found[-1] if found else tokens, cache))
            last = logits[:, -1]
            if temperature:
                found.append(torch.multinomial((last / temperature).softmax(-1), 1, generator=generator))
            else:
                found.append(last.argmax(-1, keepdim=True))
        return torch.cat(found, 1)
