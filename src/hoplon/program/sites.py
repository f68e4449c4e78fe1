"""What in a model can be hit: value sites, memory sites, their names, and selections of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from math import prod
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from hoplon.errors import CaptureError, SiteError, checked, no_match
from hoplon.formats.dtypes import QUANTISED
from hoplon.program.words import word_sets


@dataclass(frozen=True)
class Identity:
    """Who an operator output is, before its shape is known: the key that all forms of a model share."""

    owner: str
    kind: str
    call: int = 0
    output: int = 0

    @property
    def name(self) -> str:
        """The printed identity.

        Example:
            >>> ValueSite("layer1.0", "relu", 1).name
            'layer1.0:relu.1'
            >>> ValueSite("pool", "max_pool", 0, 1).name
            'pool:max_pool#1'
        """
        call = f".{self.call}" if self.call else ""
        output = f"#{self.output}" if self.output else ""
        return f"{self.owner}:{self.kind}{call}{output}"

    def site(self, shape: Sequence[int], dtype: torch.dtype) -> ValueSite:
        """The output as a site of this shape."""
        return ValueSite(self.owner, self.kind, self.call, self.output, tuple(shape), dtype)


@dataclass(frozen=True)
class ValueSite(Identity):
    """The output of one operator call, named in the user's terms.

    ``shape`` is that of one sample: the batch axis is left out, a folded batch axis keeps its fold. An element of the
    site is its row-major index in ``shape``.
    """

    shape: tuple[int, ...] = field(default=(), compare=False)
    dtype: torch.dtype = field(default=torch.float32, compare=False)

    @property
    def numel(self) -> int:
        """Elements in one sample."""
        return prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    @property
    def kinds(self) -> frozenset[str]:
        """The one kind."""
        return frozenset([self.kind])

    @property
    def layer(self) -> str:
        """The module that owns the operator: what ``by("layer")`` groups on."""
        return self.owner


@dataclass(frozen=True)
class MemorySite:
    """A set of words of parameters, buffers or other stored tensors; names that show some of them are labels.

    An element is its row-major index in ``shape``. ``kinds`` are those of the operators that its values reach without
    meeting an input. ``view``: strides and offset of the words from the tensor of this name; None: it shows each once.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kinds: frozenset[str] = field(default=frozenset(), compare=False)
    is_buffer: bool = field(default=False, compare=False)
    shape: tuple[int, ...] = field(default=(), compare=False)
    dtype: torch.dtype = field(default=torch.float32, compare=False)
    view: tuple[tuple[int, ...], int] | None = field(default=None, compare=False)

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The words, each once, in tensors given by name: shape ``shape``, a view."""
        tensor = tensors[self.name]
        if self.view is None:
            return tensor
        strides, offset = self.view
        return tensor.detach().as_strided(self.shape, strides, tensor.storage_offset() + offset)

    @property
    def numel(self) -> int:
        """Elements in the storage."""
        return prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the storage."""
        return (self.name, *self.aliases)

    @property
    def layer(self) -> str:
        """The module that owns the storage: what ``by("layer")`` groups on."""
        return self.name.rpartition(".")[0]


def memory_sites(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, Collection[str]], buffers: Collection[str]
) -> tuple[tuple[MemorySite, ...], tuple[str, ...]]:
    """The sites of stored tensors, and the names of those that are none: nothing reads them, or they are empty.

    Args:
        tensors: by name.
        kinds: by name, of the operators that their values reach.
        buffers: names of those that are no parameters.
    Raises:
        CaptureError: tensors that overlap in part, so that no tensor shows all of their words.
    """
    read = [name for name, tensor in tensors.items() if kinds.get(name) and tensor.numel()]
    sites: list[MemorySite] = []
    for words in word_sets(tensors, read):
        first, *aliases = words.names
        if words.tensor is None:
            raise CaptureError(
                f"expected names of one storage to show the same words, words of their own, or all between them, got "
                f"parts that overlap and leave gaps: {', '.join(words.names)}; give each its own with .clone()"
            )
        shape, tensor = tuple(words.tensor.shape), tensors[first]
        offset = int(words.tensor.storage_offset() - tensor.storage_offset())
        view = None if shape == tuple(tensor.shape) else (words.tensor.stride(), offset)
        reached = frozenset().union(*(kinds.get(name, ()) for name in words.names))
        sites.append(MemorySite(first, tuple(aliases), reached, first in buffers, shape, tensor.dtype, view))
    struck = {name for site in sites for name in site.names}
    unread = [name for name in tensors if name not in struck]
    return tuple(sites), tuple(unread)


Site = ValueSite | MemorySite
_S = TypeVar("_S", ValueSite, MemorySite)


def call_numbers() -> defaultdict[tuple[str, str], count[int]]:
    """Numbers of the calls of each kind inside each owner, in execution order: ``next(numbers[owner, kind])``."""
    return defaultdict(count)


@runtime_checkable
class HasSites(Protocol):
    """What a selection selects from."""

    @property
    def value_sites(self) -> tuple[ValueSite, ...]:
        """Operator outputs in execution order."""

    @property
    def input_sites(self) -> tuple[ValueSite, ...]:
        """The model's tensor inputs."""

    @property
    def memory_sites(self) -> tuple[MemorySite, ...]:
        """In the order of the model's state."""

    def not_struck(self) -> Mapping[str, object]:
        """By name, what is stored and no fault strikes."""


@runtime_checkable
class HasGuardSites(Protocol):
    """What a selection of guards' memory selects from."""

    @property
    def guard_sites(self) -> tuple[MemorySite, ...]:
        """In the order of the guards."""


def _as_patterns(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)


def _matching(
    what: str,
    sites: Iterable[_S],
    pattern: str | Sequence[str],
    allowed: Callable[[_S], bool],
    limits: str,
) -> tuple[_S, ...]:
    candidates = tuple(sites)
    patterns = _as_patterns(pattern) or ()
    matched: dict[_S, None] = {}
    for text in patterns:
        hits = [s for s in candidates if any(fnmatchcase(name, text) for name in s.names)]
        if not hits:
            raise no_match(what, text, [name for s in candidates for name in s.names])
        matched.update(dict.fromkeys(hits))
    chosen = tuple(s for s in candidates if s in matched and allowed(s))
    if not chosen:
        kinds = ", ".join(sorted({kind for s in candidates for kind in s.kinds}))
        raise SiteError(
            f"expected at least one {what} with {limits}, got none of {len(candidates)}; kinds here are {kinds}"
        )
    return chosen


_PRODUCTS = frozenset(["conv", "conv_transpose", "linear", "matmul"])


def holds_numbers(site: Site) -> bool:
    """Tell whether the words of a site are numbers that a layer computes with: not indices, not masks.

    Those are floating-point and quantised ones, and the integers that a product reads, that a quantisation gave, or
    that a dequantisation reads.
    """
    if site.dtype in QUANTISED or site.dtype.is_floating_point:
        return True
    computes = not site.kinds.isdisjoint(_PRODUCTS) or any("quantize" in kind for kind in site.kinds)
    return computes and not site.dtype.is_complex


def _fits(site: Site, kinds: Collection[str] | None, dtype: torch.dtype | None) -> bool:
    right_dtype = site.dtype == dtype if dtype else holds_numbers(site)
    return right_dtype and (kinds is None or not site.kinds.isdisjoint(kinds))


@checked
@dataclass(frozen=True)
class Values:
    """A selection of value sites: operator outputs, by name pattern, kind and dtype.

    ``pattern`` is a shell-style pattern, or several, on names such as ``layer1.0.conv1:conv``; each has to match.
    ``kind`` and ``dtype`` narrow the choice; ``kind="input"`` asks for the model's inputs, which are sites only then,
    as are the caches of a decoder, ``kind=("keys", "values")``. Unless ``dtype`` says otherwise, indices and masks are
    left out: see :func:`holds_numbers`.

    Example:
        >>> Values("layer1.*", kind="conv")
        Values(pattern='layer1.*', kind='conv', dtype=None)
    """

    pattern: str | tuple[str, ...] = "*"
    kind: str | tuple[str, ...] | None = None
    dtype: torch.dtype | None = None

    target = "values"

    def select(self, program: HasSites) -> tuple[ValueSite, ...]:
        """The matching sites in execution order.

        Raises:
            SiteError: a pattern matches nothing (near names are listed), or nothing is left.
        """
        kinds = _as_patterns(self.kind)
        limits = f"kind {self.kind or 'any'} and dtype {self.dtype or 'of numbers'}"
        inputs = [site for site in program.input_sites if site.kind in (kinds or ())]
        sites = (*inputs, *program.value_sites)
        return _matching("value site", sites, self.pattern, lambda s: _fits(s, kinds, self.dtype), limits)


@checked
@dataclass(frozen=True)
class Memory:
    """A selection of memory sites: words of parameters, buffers and other tensors, by name pattern, kind and dtype.

    ``kind`` keeps those whose values reach an operator of this kind; ``buffers=False`` keeps parameters only. Unless
    ``dtype`` says otherwise, indices and masks are left out: see :func:`holds_numbers`.

    Example:
        >>> Memory("*.weight", kind="conv")
        Memory(pattern='*.weight', kind='conv', dtype=None, buffers=True)
    """

    pattern: str | tuple[str, ...] = "*"
    kind: str | tuple[str, ...] | None = None
    dtype: torch.dtype | None = None
    buffers: bool = True

    target = "memory"

    def select(self, program: HasSites) -> tuple[MemorySite, ...]:
        """The matching sites in the order of the model's state.

        Raises:
            SiteError: a pattern matches nothing (near names are listed), or nothing is left.
        """
        kinds = _as_patterns(self.kind)

        def allowed(site: MemorySite) -> bool:
            return _fits(site, kinds, self.dtype) and (self.buffers or not site.is_buffer)

        limits = f"kind {self.kind or 'any'} and dtype {self.dtype or 'of numbers'}"
        if not program.memory_sites and (unstruck := program.not_struck()):
            raise SiteError(
                f"expected words that a fault can strike, got a model that holds {', '.join(unstruck)} alone, which "
                "have none; strike the values, or the memory of the model before it was packed"
            )
        return _matching("memory site", program.memory_sites, self.pattern, allowed, limits)


@checked
@dataclass(frozen=True)
class GuardMemory:
    """A selection of what guards hold beside the model: copies, sums, indices, a site class of its own.

    Its sites belong to the protections of a campaign, not to the program: ``aspis-1%/conv1.weight#index``.

    Example:
        >>> GuardMemory("parity/*")
        GuardMemory(pattern='parity/*', dtype=None)
    """

    pattern: str | tuple[str, ...] = "*"
    dtype: torch.dtype | None = None

    target = "memory"

    def select(self, holder: HasGuardSites) -> tuple[MemorySite, ...]:
        """The matching sites, guard by guard.

        Raises:
            SiteError: no guard is armed, or a pattern or dtype matches nothing.
        """
        if not holder.guard_sites:
            raise SiteError("expected protections that guard memory, got none; add TMR, Aspis, Parity or another guard")
        limits = f"dtype {self.dtype or 'any'}"
        return _matching(
            "guard site", holder.guard_sites, self.pattern, lambda s: self.dtype in (None, s.dtype), limits
        )
