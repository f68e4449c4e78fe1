"""Features of faults that need no run: the words that they will meet, and gradients of the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hoplon.campaign.stratified.element_views import rows_by, samples_of
from hoplon.errors import HoplonError
from hoplon.formats.dtypes import native
from hoplon.injection.injector import Injector
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite, ValueSite

# Inputs that tell how long gradients are: an element's differ little between inputs.
_LENGTH_INPUTS = 16


class Observer:
    """Fault-free words under an injector's overlay, by site, element and input; runs golden batches as needed.

    ``copies`` are the tensors that guards hold, by the names of their sites.
    """

    def __init__(
        self,
        injector: Injector,
        sites: Sequence[ValueSite | MemorySite],
        copies: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._injector, self._sites, self._copies = injector, sites, copies or {}
        program = injector.reference.program
        injector.fault_free.want(program.site_steps[site.name] for site in sites if isinstance(site, ValueSite))

    def __call__(self, number: Tensor, element: Tensor, given: Tensor | None) -> Tensor:
        """The word in its own dtype that each fault meets.

        Args:
            number: of the site, int64, shape ``(n,)``.
            element: row-major index in the site, int64, shape ``(n,)``.
            given: eligible input, int64, shape ``(n,)``; None: memory.
        Returns:
            int64, shape ``(n,)``.
        """
        found = torch.zeros(len(number), dtype=torch.int64)
        if given is None:
            memory = {**self._injector.reference.program.memory(), **self._copies}
            for site, here in rows_by(number):
                words = self._sites[site].of(memory).unsqueeze(0)  # type: ignore[union-attr]
                found[here] = _taken(words, torch.zeros_like(here), element[here])
            return found
        reference = self._injector.reference
        position = reference.positions(given)
        for batch, here in rows_by(position // reference.batch):
            found[here] = self._values(batch, number[here], position[here] % reference.batch, element[here])
        return found

    def _values(self, batch: int, number: Tensor, row: Tensor, element: Tensor) -> Tensor:
        """The words of one batch of inputs; 0 where a pass gives the site fewer elements."""
        program, values = self._injector.reference.program, self._injector.fault_free[batch]
        found = torch.zeros(len(number), dtype=torch.int64)
        for site, here in rows_by(number):
            step = program.site_steps[self._sites[site].name]
            found[here] = _taken(samples_of(program, step, values[~step]), row[here], element[here])
        return found


class LogitGradients:
    """Gradients of the outputs that decide the class by a value, relative to the gap between the two largest.

    First order, of the unprotected model: two backward passes, one for each of those outputs. Zero for integers, which
    have no gradient. How long a gradient is hangs on the element far more than on the input: a few inputs of the first
    batch tell it (root mean square) for all of them, each over its own gap. Only the slope has a direction and needs
    each input.

    Args:
        each_input: take the gradients of every input, and the slope with them; else it is zero.

    Raises:
        HoplonError: a model without a graph, memory sites, or no single judged output of shape ``(runs, classes)``.
    """

    def __init__(
        self, injector: Injector, sites: Sequence[ValueSite | MemorySite], *, each_input: bool = False
    ) -> None:
        reference = injector.reference
        judged = reference.criterion.judged(reference.golden)
        logits = isinstance(judged, Tensor) and judged.ndim == 2 and judged.shape[1] > 1
        if not logits or not reference.program.has_graph or isinstance(sites[0], MemorySite):
            raise HoplonError(
                "expected value faults, a model that can be exported and one judged output of shape (runs, classes) "
                "for strata by first order, got others; use ByDeviation alone"
            )
        self._reference, self._each_input = reference, each_input
        largest = judged.cpu().double().topk(2, 1)
        self._answers, (first, second) = largest.indices[:, 0], largest.values.unbind(1)
        self._gaps = (first - second).clamp(min=torch.finfo(judged.dtype).tiny)
        self._squares: dict[int, Tensor] = {}

    def __call__(self, step: Tensor, element: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By step of the program, element and input, int64, shape ``(n,)``: slope, sensitivity and answer, see
        `CandidateFeatures`.

        Returns:
            Of the gap, and the length of the gradient of both outputs, each over the gap: float64, shape ``(n,)``. The
            index of the larger one: int64, shape ``(n,)``.
        """
        reference = self._reference
        slope, square = torch.zeros(2, len(step), dtype=torch.float64)
        position = reference.positions(given)
        if self._each_input:
            for batch, here in rows_by(position // reference.batch):
                both = self._batch(batch, step[here], position[here] % reference.batch, element[here])
                slope[here], square[here] = both[0] - both[1], both.square().sum(0)
        else:
            self._measure(step.unique().tolist())
            for number, here in rows_by(step):
                known = self._squares[number]
                square[here] = known[element[here].clamp(max=len(known) - 1)]
        gap = self._gaps[position]
        return slope / gap, square.sqrt() / gap, self._answers[position]

    def _measure(self, steps: Sequence[int]) -> None:
        """Squared lengths by element, the mean of the first inputs, for steps that have none yet."""
        program, reference = self._reference.program, self._reference
        new = [step for step in steps if step not in self._squares]
        first = reference.eligible[: min(_LENGTH_INPUTS, reference.batch)]
        sides = self._gradients(program.leaves(reference.data, first), new) if new else []
        for step in new:
            parts = [samples_of(program, step, side[step])[: len(first)] for side in sides if step in side]
            squares = [part.double().square().mean(0).reshape(-1).cpu() for part in parts]
            self._squares[step] = torch.stack(squares).sum(0) if squares else torch.zeros(1, dtype=torch.float64)

    def _batch(self, batch: int, step: Tensor, row: Tensor, element: Tensor) -> Tensor:
        """The gradients of both outputs for one batch of inputs: float64, shape ``(2, n)``."""
        both = torch.zeros(2, len(step), dtype=torch.float64)
        places = dict(rows_by(step))
        for which, side in enumerate(self._gradients(self._reference.leaves(batch)[0], list(places))):
            for number, gradient in side.items():
                here = places[number]
                both[which, here] = _elements(self._reference.program, number, gradient, row[here], element[here])
        return both

    def _gradients(self, leaves: Sequence[Any], wanted: Sequence[int]) -> list[dict[int, Tensor]]:
        """Of the largest output of each input, then of the second, by the values of steps that have a gradient."""
        program, reference = self._reference.program, self._reference
        values: dict[int, Tensor] = {}

        def watch(number: int, value: Any) -> Any:
            if number in wanted and (value.is_floating_point() or value.is_complex()):
                value = value if value.requires_grad else value.detach().requires_grad_()
                values[number] = value
            return value

        with torch.inference_mode(False), torch.enable_grad():
            memory = {name: tensor.detach() for name, tensor in program.memory().items()}
            outputs = program.samples_first(program.run(leaves, memory, hook=watch))
            judged = reference.criterion.judged(outputs)
            assert isinstance(judged, Tensor)
            largest = judged.topk(2, 1).values.unbind(1)
            found = [
                torch.autograd.grad(
                    output.sum(), list(values.values()), allow_unused=True, retain_graph=output is largest[0]
                )
                for output in largest
                if values  # none of integers
            ]
        sides: list[dict[int, Tensor | None]] = [dict(zip(values, parts, strict=True)) for parts in found]
        return [{number: part for number, part in side.items() if part is not None} for side in sides]


def _elements(program: Program, number: int, value: Tensor, row: Tensor, element: Tensor) -> Tensor:
    """Some elements of a step's value: float64, on the CPU."""
    samples = samples_of(program, number, value)
    flat = samples.reshape(len(samples), -1)
    there = element.clamp(max=flat.shape[1] - 1).to(flat.device)
    return flat[row.to(flat.device), there].double().cpu()


def _taken(samples: Tensor, row: Tensor, element: Tensor) -> Tensor:
    """Words of some elements; `samples` has shape ``(batch, *sample shape)``."""
    flat = samples.reshape(len(samples), -1)
    row, element = row.to(flat.device), element.to(flat.device)
    there = element < flat.shape[1]
    words = native(flat.dtype).words(flat[row, element.clamp(max=flat.shape[1] - 1)])
    return torch.where(there, words, 0).cpu()
