"""Many faulty generations at once: one pass along the golden tokens, and steps for those that leave them.

As long as a faulty run chooses the golden tokens, all its steps are known beforehand and are one pass over their
positions, with the fault in the row and the position that it strikes. Only runs that choose another token go on step by
step, all together. Passes of many rows round otherwise than those of one prompt: a run whose next token was nearly
another one (:data:`NEAR`) is told apart, to be run alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.injection.decoding.golden import DecodingGolden, layer_of
from hoplon.program.decoding.choosing import Choice, choose
from hoplon.program.decoding.loop import Loop, watched
from hoplon.program.decoding.models import Cache
from hoplon.program.decoding.program import NO_TOKEN, DecodingProgram
from hoplon.program.decoding.sites import DecodingSite, Extent, indices_in
from hoplon.program.eager_watch import OperatorCall

NEAR = 5e-6
"""Margin up to which the second best token counts as near."""

_TOKENS = 2048  # of a pass: more take memory that is mapped anew by every operator
_LOGITS = 2**25  # numbers in the logits of a pass, at most
_POOL_BYTES = 2**29  # of the caches of runs that wait to go on

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StruckWords:
    """Changed words, one per run: run number, site, element, and the changed value, of shape ``(1,)``."""

    site: Sequence[DecodingSite]
    element: Tensor
    value: Sequence[Tensor]


@dataclass(eq=False)
class Runs:
    """Generations under way beside golden ones, by number.

    ``golden``: of each run; ``row``: its prompt there; ``tokens``, ``finite`` (of the logits of each):
    shape ``(runs, new_tokens)``;
    ``near``: bool, runs that have to be run alone.
    """

    program: DecodingProgram
    golden: Sequence[DecodingGolden]
    row: Sequence[int]
    tokens: Tensor = field(init=False)
    finite: Tensor = field(init=False)
    near: Tensor = field(init=False)
    _pool: list[tuple[int, int, Cache]] = field(default_factory=list, init=False)
    _pool_bytes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        pairs = zip(self.golden, self.row, strict=True)
        self.tokens = torch.stack([golden.outputs[0][row] for golden, row in pairs])
        self.finite = torch.ones_like(self.tokens, dtype=torch.bool)
        self.near = torch.zeros(len(self.row), dtype=torch.bool)

    def strike(self, words: StruckWords, runs: Ints) -> None:
        """Run some of the faults, each at a site whose faults go together."""
        first = _first_positions(self.program, words)
        caches = np.array([site.is_cache for site in words.site])
        steps = np.array([site.step for site in words.site])
        with torch.inference_mode():
            for step in np.unique(steps[runs][caches[runs]]):
                self._in_waves(runs[caches[runs] & (steps[runs] == step)], first, words)
            values = runs[~caches[runs]]
            self._in_waves(values[np.argsort(first[values], kind="stable")], first, words)
            self.go_on()

    def _in_waves(self, runs: Ints, first: Ints, words: StruckWords) -> None:
        """Run passes; ``runs`` are in the order of the positions that they begin at, one of all where a cache is."""
        total, vocabulary = self.program.prompt_length + self.program.new_tokens - 1, None
        while len(runs):
            begin = int(first[runs[0]])
            length = total - begin
            size = max(1, _TOKENS // length)
            if vocabulary is not None:
                size = max(1, min(size, _LOGITS // (length * vocabulary)))
            vocabulary = self._pass(runs[:size], begin, words)
            runs = runs[size:]

    def _pass(self, runs: Ints, begin: int, words: StruckWords) -> int:
        """Run one pass along the golden tokens from a position on; the size of the vocabulary."""
        read = torch.stack([self.golden[run].read[self.row[run], begin:] for run in runs])
        cache = self._golden_cache(runs, begin)
        plan = self._plan(runs, begin, words, cache)

        def see(call: OperatorCall) -> None:
            for identity, output in call.outputs():
                if identity.name in plan:
                    where, values = plan[identity.name]
                    output[where] = values

        with watched(self.program.causal.module, see):
            logits, grown = self.program.causal(read, cache, everywhere=True)
        steps = torch.tensor([words.site[run].step for run in runs])
        self.follow(runs, logits, grown, begin, steps)
        return int(logits.shape[-1])

    def _golden_cache(self, runs: Ints, begin: int) -> Cache:
        if not begin:
            return []
        return [
            (
                torch.stack([self.golden[run].cache[layer][0][self.row[run], :, :begin] for run in runs]),
                torch.stack([self.golden[run].cache[layer][1][self.row[run], :, :begin] for run in runs]),
            )
            for layer in range(len(self.golden[0].cache))
        ]

    def _plan(
        self, runs: Ints, begin: int, words: StruckWords, cache: Cache
    ) -> dict[str, tuple[tuple[Tensor, ...], Tensor]]:
        """By operator, where values change in a pass and to what; caches are changed in place."""
        total = self.program.prompt_length + self.program.new_tokens - 1
        together = Extent(len(runs), total - begin, total)
        found: dict[str, list[tuple[tuple[Tensor, ...], Tensor]]] = {}
        for number, run in enumerate(runs):
            site, element = words.site[run], words.element[run : run + 1]
            if site.is_cache:
                layer, kind = layer_of(site)
                heads, places, widths = torch.unravel_index(element, site.shape)
                cache[layer][kind][number, heads, places, widths] = words.value[run]
                continue
            roles = self.program.roles_at(site)
            assert roles is not None, "faults that do not go together run alone"
            row, step = torch.tensor([number]), self.program.extent(site.step)
            where = indices_in(roles, site.shape, element, row, step=step, together=together)
            found.setdefault(site.operator, []).append((where, words.value[run]))
        return {
            operator: (
                tuple(torch.cat(axis) for axis in zip(*(where for where, _ in parts), strict=True)),
                torch.cat([value for _, value in parts]),
            )
            for operator, parts in found.items()
        }

    def follow(self, runs: Ints, logits: Tensor, grown: Cache, begin: int, steps: Tensor) -> None:
        """Take the tokens that runs choose in a pass along the golden ones, and note which leave them.

        Args:
            logits: of the tokens from ``begin`` on; ``grown``: the caches behind the last one.
            steps: that the runs begin with, int64, shape ``(runs,)``.
        """
        program, length = self.program, self.program.prompt_length
        skipped = max(0, begin - length + 1)  # tokens that are chosen in front of the pass
        noise = None if program.noise is None else program.noise[skipped:]
        choice = choose(logits[:, length - 1 + skipped - begin :], program.draws, noise)
        at = torch.arange(skipped, program.new_tokens)
        ended = torch.stack([self.golden[run].lengths[self.row[run]] for run in runs])
        counts = (at >= steps.unsqueeze(1)) & (at < ended.unsqueeze(1))
        golden = self.tokens[torch.from_numpy(runs), skipped:]
        left = ((choice.token != golden) | ~choice.finite) & counts
        first = torch.where(left.any(1), left.int().argmax(1), len(at))
        near = (choice.margin <= NEAR) & counts & (torch.arange(len(at)) <= first.unsqueeze(1))
        self.near[torch.from_numpy(runs)] |= near.any(1)
        for number in (left.any(1) & ~near.any(1)).nonzero().flatten().tolist():
            place, run = int(first[number]), int(runs[number])
            self.tokens[run, skipped + place :] = NO_TOKEN
            token, finite = int(choice.token[number, place]), bool(choice.finite[number, place])
            if self._takes(run, skipped + place, token, finite=finite):
                end = length + skipped + place
                self._wait(run, skipped + place, [(k[number, :, :end], v[number, :, :end]) for k, v in grown])

    def _takes(self, run: int, step: int, token: int, *, finite: bool) -> bool:
        """Write the token of a step; True if the generation goes on."""
        self.tokens[run, step] = token
        self.finite[run, step] = finite
        return finite and token not in self.program.stops and step + 1 < self.program.new_tokens

    def _wait(self, run: int, step: int, cache: Cache) -> None:
        held = [(keys.clone(), values.clone()) for keys, values in cache]
        self._pool.append((step, run, held))
        self._pool_bytes += sum(part.nbytes for pair in held for part in pair)
        if self._pool_bytes > _POOL_BYTES:
            self.go_on()

    def go_on(self) -> None:
        """Run what has left the golden tokens to its end, step by step, all at the same step together."""
        waiting = sorted(self._pool, key=lambda one: one[0])
        self._pool, self._pool_bytes = [], 0
        loop: Loop | None = None
        runs: list[int] = []
        for step in range(waiting[0][0] + 1 if waiting else 0, self.program.new_tokens):
            joining = [(run, cache) for left, run, cache in waiting if left == step - 1]
            if joining:
                loop, runs = self._joined(loop, runs, joining, step)
            if loop is None or not runs:
                continue
            choice = loop.advance()
            on = self._take_all(runs, step, choice)
            if len(on) < len(runs):
                loop.keep(torch.tensor(on, dtype=torch.int64))
                runs = [runs[row] for row in on]

    def _joined(
        self, loop: Loop | None, runs: list[int], joining: Sequence[tuple[int, Cache]], step: int
    ) -> tuple[Loop, list[int]]:
        tokens = torch.stack([self.tokens[run, step - 1 : step] for run, _ in joining])
        layers = range(len(joining[0][1]))
        cache = [tuple(torch.stack([held[layer][kind] for _, held in joining]) for kind in (0, 1)) for layer in layers]
        if loop is not None and runs:
            tokens = torch.cat([loop.tokens, tokens])
            cache = [tuple(map(torch.cat, zip(*pairs, strict=True))) for pairs in zip(loop.cache, cache, strict=True)]
        joined = self.program.loop(tokens)
        joined.cache, joined.step = cache, step  # type: ignore[assignment]
        return joined, [*runs, *(run for run, _ in joining)]

    def _take_all(self, runs: Sequence[int], step: int, choice: Choice) -> list[int]:
        """Write the tokens of a step; the rows that go on."""
        on = []
        tokens, near, finite = choice.token.tolist(), (choice.margin <= NEAR).tolist(), choice.finite.tolist()
        for row, run in enumerate(runs):
            if near[row]:
                self.near[run] = True
            elif self._takes(run, step, tokens[row], finite=finite[row]):
                on.append(row)
        return on


def _first_positions(program: DecodingProgram, words: StruckWords) -> Ints:
    """The position of the first token whose values a fault changes, by run."""
    found = np.zeros(len(words.site), dtype=np.int64)
    for run, site in enumerate(words.site):
        step = program.extent(site.step)
        found[run] = step.begin
        if not site.step and not site.is_cache:
            found[run] = _position(program, site, words.element[run : run + 1])
    return found


def _position(program: DecodingProgram, site: DecodingSite, element: Tensor) -> int:
    """The position of the token that an element of the prefill belongs to."""
    roles, step = program.roles_at(site), program.extent(0)
    assert roles is not None, "faults that do not go together run alone"
    where = indices_in(roles, site.shape, element, torch.zeros_like(element), step=step, together=step)
    return next(
        int(index) for role, index in zip(roles, where, strict=True) if role in ("query", "last", "batch x query")
    )


def golden_rows(
    goldens: Mapping[int, DecodingGolden], rows: Ints, batch: int
) -> tuple[list[DecodingGolden], list[int]]:
    """The golden generations of samples, numbered through all batches, and their rows there."""
    return [goldens[int(row) // batch] for row in rows], [int(row) % batch for row in rows]
