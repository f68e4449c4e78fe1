"""Replay of faults in decoding loops, behind the interface of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import HoplonError, checked
from hoplon.formats.base import same_bits
from hoplon.formats.dtypes import native
from hoplon.injection.decoding.alone import struck_alone
from hoplon.injection.decoding.golden import DecodingGolden, golden_generations
from hoplon.injection.decoding.side_by_side import Runs, StruckWords, golden_rows
from hoplon.injection.replay.golden import Golden, GoldenStack, InjectedWords, Injections, ReplayStatistics
from hoplon.injection.replay.replay import Replay
from hoplon.program.decoding.program import DecodingProgram
from hoplon.program.decoding.sites import DecodingSite
from hoplon.program.eager import holding


@checked
class DecodingReplay(Replay):
    """Replay of a decoding loop: faults of one word side by side, what is nearly another token once more, alone.

    ``near_ties``: bool, by run of the last call of `strike_many` or row of `strike_memory`, what was run alone for it.
    """

    near_ties: Tensor

    def __post_init__(self) -> None:
        if self.overlay.values:
            raise HoplonError(
                f"expected no protection of values in {self.program.name}, a decoding loop, got some; guards of memory "
                "can be armed there, and values protected in the model that is captured"
            )
        self.flagged = self.outvoted = self._no_flags()
        self.near_ties = torch.zeros(0, dtype=torch.bool)

    @property
    def _decoding(self) -> DecodingProgram:
        return cast(DecodingProgram, self.program)

    @override
    def covers(self, name: str) -> bool:
        return self._decoding.goes_together(self._decoding.value_site(name))

    @override
    def golden(self, leaves: Sequence[Any]) -> Golden:
        return golden_generations(self._decoding, leaves[0], (s for s in self.sites if isinstance(s, DecodingSite)))

    @override
    def strike_values(
        self, golden: Golden, injections: Mapping[str, Injections]
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        assert isinstance(golden, DecodingGolden), "made by this replay"
        outputs = [output.clone() for output in golden.outputs]
        words = {name: _words_of(one) for name, one in injections.items()}
        for row in torch.cat([one.rows for one in injections.values()]).unique().tolist():
            mine = {name: _only(one, one.rows == row) for name, one in injections.items() if (one.rows == row).any()}
            found, struck = struck_alone(self._decoding, golden, row, mine)
            for output, own in zip(outputs, self._decoding.outputs(*found), strict=True):
                output[row] = own[0]
            for name, own_words in struck.items():
                _fill(words[name], injections[name].rows == row, own_words)
        self.statistics += ReplayStatistics(passes=1)
        return outputs, words

    def strike_many(
        self, golden: GoldenStack, injections: Mapping[str, Injections], runs: Mapping[str, Tensor], count: int
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        """Run faults of one word each, any number at once.

        Args:
            injections: by site, rows numbered through all batches.
            runs: by site, the run of each injection, int64, below ``count``.
        Returns:
            The flat outputs, a row per run, and the words by site.
        """
        program, goldens = self._decoding, cast("Mapping[int, DecodingGolden]", golden.batches)
        rows, owner = np.zeros(count, dtype=np.int64), [("", 0)] * count
        for name, of_runs in runs.items():
            rows[of_runs.numpy()] = injections[name].rows.numpy()
            for place, run in enumerate(of_runs.tolist()):
                owner[run] = name, place
        held, row = golden_rows(goldens, rows, golden.batch)
        words, values = {}, [torch.zeros(0)] * count
        for name, one in injections.items():
            words[name] = self._words(name, one, held, row, runs[name], values)
        sites, elements = [program.value_site(name) for name, _ in owner], torch.zeros(count, dtype=torch.int64)
        reached = np.zeros(count, dtype=np.bool_)
        for run, (name, place) in enumerate(owner):
            elements[run], reached[run] = injections[name].elements[place], words[name].reached[place]
        under_way = Runs(program, held, row)
        under_way.strike(StruckWords(sites, elements, values), np.flatnonzero(reached))
        self.near_ties = under_way.near
        for run in under_way.near.nonzero().flatten().tolist():
            found, _ = struck_alone(program, held[run], row[run], {owner[run][0]: _to(elements[run], values[run])})
            under_way.tokens[run], under_way.finite[run] = found[0][0], found[1][0]
        self.statistics += ReplayStatistics(passes=1)
        return program.outputs(under_way.tokens, under_way.finite), words

    def _words(
        self,
        name: str,
        injections: Injections,
        held: Sequence[DecodingGolden],
        row: Sequence[int],
        runs: Tensor,
        values: list[Tensor],
    ) -> InjectedWords:
        """Change golden words: what they are before and after, and in ``values``, by run, the changed value."""
        site = self._decoding.value_site(name)
        met = torch.tensor([site.step < int(held[run].lengths[row[run]]) for run in runs.tolist()])
        words, where = _words_of(injections), met.nonzero().flatten()
        if not len(where):
            return words
        one = _only(injections, where)
        old = torch.cat(
            [held[run].words(site, row[run], one.elements[n : n + 1]) for n, run in enumerate(runs[where].tolist())]
        )
        form = (one.format or native(old.dtype)).at(one.elements, site.shape)
        new = form.apply(old, one.keep, one.flip)
        _fill(words, where, InjectedWords(form.words(old), form.words(new), ~same_bits(old, new)))
        for number, run in enumerate(runs[where].tolist()):
            values[run] = new[number : number + 1]
        return words

    @override
    def strike_memory(
        self, golden: Golden, memory: Mapping[str, Tensor], changed: Mapping[str, Tensor | None]
    ) -> list[Any]:
        assert isinstance(golden, DecodingGolden), "made by this replay"
        program = self._decoding
        _, first, inverse = np.unique(golden.leaves[0].numpy(), axis=0, return_index=True, return_inverse=True)
        rows = first.tolist()  # what fills a batch up is run once
        under_way = Runs(program, [golden] * len(rows), rows)
        with torch.inference_mode(), holding(program.tensors, {name: memory[name] for name in changed}):
            logits, grown = program.causal(golden.read[first], [], everywhere=True)
            under_way.follow(np.arange(len(rows)), logits, grown, 0, torch.zeros(len(rows), dtype=torch.int64))
            under_way.go_on()
            for run in under_way.near.nonzero().flatten().tolist():
                loop = program.loop(golden.leaves[0][rows[run]].unsqueeze(0))
                tokens, finite = program.alone(loop, program.blank(1))
                under_way.tokens[run], under_way.finite[run] = tokens[0], finite[0]
        back = torch.from_numpy(inverse.reshape(-1))
        self.near_ties = under_way.near[back]
        self.statistics += ReplayStatistics(passes=1)
        return program.outputs(under_way.tokens[back], under_way.finite[back])


def _only(injections: Injections, which: Tensor) -> Injections:
    form = injections.format
    return Injections(
        injections.rows[which],
        injections.elements[which],
        injections.keep[which],
        injections.flip[which],
        form if form is None else form.only(which),
    )


def _to(element: Tensor, value: Tensor) -> Injections:
    """One word that becomes this value, shape ``(1,)``, whatever it was."""
    word, nothing = native(value.dtype).words(value), torch.zeros(1, dtype=torch.int64)
    return Injections(nothing, element.reshape(1), nothing, word)


def _words_of(injections: Injections) -> InjectedWords:
    nothing = torch.zeros_like(injections.elements)
    return InjectedWords(nothing, nothing.clone(), nothing.bool())


def _fill(words: InjectedWords, which: Tensor, own: InjectedWords) -> None:
    words.before[which], words.after[which], words.reached[which] = own.before, own.after, own.reached
