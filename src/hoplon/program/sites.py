"""What in a model can be hit: value sites, memory sites, their names, and selections of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from math import prod
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from hoplon.errors import SiteError, no_match


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
    """One storage of parameters or buffers; all its names are one site.

    An element is its row-major index in ``shape``. ``kinds`` are the operators that read it.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kinds: frozenset[str] = field(default=frozenset(), compare=False)
    is_buffer: bool = field(default=False, compare=False)
    shape: tuple[int, ...] = field(default=(), compare=False)
    dtype: torch.dtype = field(default=torch.float32, compare=False)

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
    names: Iterable[Sequence[str]],
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, Collection[str]],
    buffers: Collection[str],
) -> tuple[tuple[MemorySite, ...], tuple[str, ...]]:
    """The sites of storages, and the names of those that are none: nothing reads them, or they are empty.

    Args:
        names: of one storage each.
        tensors: by name.
        kinds: by name, of the operators that read it.
        buffers: names of buffers.
    """
    sites, unread = [], []
    for first, *aliases in names:
        read_by = frozenset().union(*(kinds[name] for name in (first, *aliases)))
        tensor = tensors[first]
        if read_by and tensor.numel():
            shape = tuple(tensor.shape)
            sites.append(MemorySite(first, tuple(aliases), read_by, first in buffers, shape, tensor.dtype))
        else:
            unread += [first, *aliases]
    return tuple(sites), tuple(unread)


Site = ValueSite | MemorySite
_S = TypeVar("_S", ValueSite, MemorySite)


def call_numbers() -> defaultdict[tuple[str, str], count[int]]:
    """Numbers of the calls of each kind inside each owner, in execution order: ``next(numbers[owner, kind])``."""
    return defaultdict(count)


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


def _fits(site: Site, kinds: Collection[str] | None, dtype: torch.dtype | None) -> bool:
    right_dtype = site.dtype == dtype if dtype else site.dtype.is_floating_point
    return right_dtype and (kinds is None or not site.kinds.isdisjoint(kinds))


@dataclass(frozen=True)
class Values:
    """A selection of value sites: operator outputs, by name pattern, kind and dtype.

    ``pattern`` is a shell-style pattern, or several, on names such as ``layer1.0.conv1:conv``; each has to match.
    ``kind`` and ``dtype`` narrow the choice; ``kind="input"`` asks for the model's inputs, which are sites only then.
    Only floating-point outputs are selected unless ``dtype`` says otherwise.

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
        limits = f"kind {self.kind or 'any'} and dtype {self.dtype or 'floating point'}"
        inputs = program.input_sites if "input" in (kinds or ()) else ()
        sites = (*inputs, *program.value_sites)
        return _matching("value site", sites, self.pattern, lambda s: _fits(s, kinds, self.dtype), limits)


@dataclass(frozen=True)
class Memory:
    """A selection of memory sites: storages of parameters and buffers, by name pattern, reader's kind and dtype.

    ``kind`` keeps the storages that an operator of this kind reads; ``buffers=False`` keeps parameters only.

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

        limits = f"kind {self.kind or 'any'} and dtype {self.dtype or 'floating point'}"
        return _matching("memory site", program.memory_sites, self.pattern, allowed, limits)


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
