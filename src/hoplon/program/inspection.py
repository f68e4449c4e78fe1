"""What in a program can be hit, layer by layer, and how many different faults that makes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, final

from hoplon.errors import checked
from hoplon.formats.dtypes import NATIVE_DTYPES, native
from hoplon.program.memory import Unstruck
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite, Site, ValueSite


@final
@dataclass(frozen=True)
class FaultSpace:
    """How many different faults of one, two or three bits of one word there are.

    Args:
        words: how many words there are of each width in bits.
    Source:
        Aspis, Table II. It counts ordered pairs of bits, and for a third bit 32 times that; those are
        `double_ordered` and `triple_paper`. `double` and `triple` count every set of bits once.
    Example:
        >>> space = FaultSpace({32: 20_018_880})  # the convolution weights of VGG19
        >>> space.single, space.double_ordered, space.triple_paper
        (640604160, 19858728960, 635479326720)
        >>> space.double, space.triple
        (9929364480, 99293644800)
    """

    words: Mapping[int, int]

    @classmethod
    def of(cls, sites: Iterable[Site]) -> Self:
        """The space of these sites; elements whose dtype has no bits to strike (complex numbers) are left out."""
        words: Counter[int] = Counter()
        for site in sites:
            if site.dtype in NATIVE_DTYPES:
                words[native(site.dtype).bits] += site.numel
        return cls(dict(words))

    @property
    def single(self) -> int:
        """One bit."""
        return sum(n * bits for bits, n in self.words.items())

    @property
    def double(self) -> int:
        """Two different bits of a word."""
        return sum(n * math.comb(bits, 2) for bits, n in self.words.items())

    @property
    def double_ordered(self) -> int:
        """Two different bits, a first and a second: every pair counted twice, as in the paper."""
        return sum(n * bits * (bits - 1) for bits, n in self.words.items())

    @property
    def triple(self) -> int:
        """Three different bits of a word."""
        return sum(n * math.comb(bits, 3) for bits, n in self.words.items())

    @property
    def triple_paper(self) -> int:
        """Ordered pairs times the width of the word, as in the paper: the third bit may be one of the first two."""
        return sum(n * bits * (bits - 1) * bits for bits, n in self.words.items())

    def to_dict(self) -> dict[str, int]:
        """All counts by name."""
        return {name: getattr(self, name) for name in ("single", "double", "double_ordered", "triple", "triple_paper")}


@final
@dataclass(frozen=True)
class Layer:
    """One module: ``kinds`` of its operators in execution order, elements of its outputs and of its memory."""

    name: str
    kinds: tuple[str, ...]
    values: int
    memory: int


@final
@dataclass(frozen=True, eq=False)
class Inspection:
    """What in a program can be hit.

    Args:
        program: the program.
        inputs: the model's inputs, which are sites where they are asked for.
        values: operator outputs in execution order; elements are those of one sample.
        memory: storages that some operator reads, in the order of the model's state.
        unread: elements of the storages that nothing reads, by name: no site, and in no count.
        unstruck: bytes of what no fault strikes and why, by name: no site of a default selection, and in no
            count; no guard reaches it unless the reason says so.
        layers: the modules that own a site.
    """

    program: Program
    inputs: tuple[ValueSite, ...]
    values: tuple[ValueSite, ...]
    memory: tuple[MemorySite, ...]
    unread: Mapping[str, int]
    unstruck: Mapping[str, Unstruck]
    layers: tuple[Layer, ...]

    @property
    def conv_weights(self) -> tuple[MemorySite, ...]:
        """The storages that convolutions read as weights: tensors of three or more axes, so that biases are none.

        One that several layers share counts once; transposed convolutions are another kind.
        """
        return tuple(site for site in self.memory if "conv" in site.kinds and len(site.shape) >= 3)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; ``fault_sites``: of the convolution weights, as Aspis, Table II."""
        return {
            "format": 1,
            "model": self.program.name,
            "fingerprint": self.program.fingerprint(),
            "conv_layers": len(self.conv_weights),
            "conv_weights": _elements(self.conv_weights),
            "fault_sites": FaultSpace.of(self.conv_weights).to_dict(),
            "totals": {
                name: {"sites": len(sites), "elements": _elements(sites), "faults": FaultSpace.of(sites).to_dict()}
                for name, sites in self._classes()
            },
            "layers": [
                {"name": layer.name, "kinds": list(layer.kinds), "values": layer.values, "memory": layer.memory}
                for layer in self.layers
            ],
            "input_sites": [_row(site, layer=site.layer, kind=site.kind) for site in self.inputs],
            "value_sites": [_row(site, layer=site.layer, kind=site.kind) for site in self.values],
            "memory_sites": [
                _row(site, aliases=list(site.aliases), kinds=sorted(site.kinds), buffer=site.is_buffer)
                for site in self.memory
            ],
            "unread": [{"name": name, "elements": numel} for name, numel in self.unread.items()],
            "unstruck": [
                {"name": name, "bytes": row.nbytes, "share": row.nbytes / self.stored_bytes, "reason": row.reason}
                for name, row in self.unstruck.items()
            ],
        }

    @property
    def stored_bytes(self) -> int:
        """All bytes that the model stores."""
        words = sum(site.numel * site.dtype.itemsize for site in self.memory if site.dtype in NATIVE_DTYPES)
        state = self.program.memory()
        read_by_none = sum(numel * state[name].itemsize for name, numel in self.unread.items())
        return max(1, words + read_by_none + sum(row.nbytes for row in self.unstruck.values()))

    def _classes(self) -> tuple[tuple[str, tuple[Site, ...]], ...]:
        parameters = tuple(site for site in self.memory if not site.is_buffer)
        buffers = tuple(site for site in self.memory if site.is_buffer)
        return (("values", self.values), ("memory", self.memory), ("parameters", parameters), ("buffers", buffers))


@checked
def inspect(program: Program) -> Inspection:
    """List a program's layers and sites.

    Example:
        >>> import torch, hoplon
        >>> found = inspect(hoplon.capture(torch.nn.Conv2d(1, 2, 3).eval(), torch.zeros(2, 1, 4, 4)))
        >>> len(found.conv_weights), found.to_dict()["fault_sites"]["single"]
        (1, 576)
    """
    state = program.memory()
    return Inspection(
        program=program,
        inputs=program.input_sites,
        values=program.value_sites,
        memory=program.memory_sites,
        unread={name: state[name].numel() for name in program.unread},
        unstruck=program.not_struck(),
        layers=_layers(program),
    )


def _layers(program: Program) -> tuple[Layer, ...]:
    kinds: dict[str, dict[str, None]] = {}
    values: dict[str, int] = {}
    memory: dict[str, int] = {}
    for site in program.value_sites:
        kinds.setdefault(site.layer, {})[site.kind] = None
        values[site.layer] = values.get(site.layer, 0) + site.numel
    for storage in program.memory_sites:
        kinds.setdefault(storage.layer, {})
        memory[storage.layer] = memory.get(storage.layer, 0) + storage.numel
    return tuple(Layer(name, tuple(found), values.get(name, 0), memory.get(name, 0)) for name, found in kinds.items())


def _elements(sites: Iterable[Site]) -> int:
    return sum(site.numel for site in sites)


def _row(site: Site, **properties: Any) -> dict[str, Any]:
    return {
        "name": site.name,
        **properties,
        "shape": list(site.shape),
        "dtype": str(site.dtype).removeprefix("torch."),
        "elements": site.numel,
    }
