"""Protections as overlays on a program: what happens to a site's value, and to memory before a forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from typing_extensions import override

from hoplon.errors import HoplonError, checked
from hoplon.program.program import Program
from hoplon.protections.memory_guard import Guard


class ValueProtection(ABC):
    """An operation on a value site's output before anyone reads it."""

    @abstractmethod
    def __call__(self, value: Tensor) -> Tensor:
        """Return the value as readers get it; same shape, dtype and strides, ``value`` itself is left alone."""

    def apply_(self, value: Tensor) -> Tensor:
        """Apply it to a buffer that may be overwritten, and return ``value``. Bit-identical to calling it."""
        return value.copy_(self(value))

    def outside(self, value: Tensor) -> Tensor | None:
        """Return True for values that it takes for wrong: bool, shape of ``value``; None where it does not tell."""
        return None

    @property
    def detects(self) -> bool:
        """True if it leaves values as they are and asks for the run to be repeated where some are :meth:`outside`."""
        return False

    @property
    def repeats(self) -> bool:
        """True if the operator itself runs once more, so that a fault in the result of one run is found and undone."""
        return False

    @property
    def local(self) -> bool:
        """True if the result of an element depends on its value and its channel alone, not on where it lies.

        Only then can a part of a value be protected by itself; replay is slower without.
        """
        return False

    @property
    def extra_bytes(self) -> int:
        """Memory that the protection holds (bounds), in bytes; none unless overridden."""
        return 0


class Protection(ABC):
    """A description of a protection: what it puts over which sites of a program. Subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name in reports."""

    @property
    def made_for(self) -> str | None:
        """Fingerprint of the program that it was profiled or scored on; None: it fits any."""
        return None

    @property
    def is_hardware(self) -> bool:
        """True if it models hardware: there is nothing to lower into a module, and nothing to time."""
        return False

    @property
    def guarantee(self) -> str:
        """Sentence: faults repaired for certain, faults only detected, probability of missing those beyond."""
        return ""

    def require_made_for(self, memory: Mapping[str, Tensor]) -> None:
        """Refuse live memory of another model than the one it was made for, where no program is there to compare with.

        Raises:
            HoplonError: says what differs, or that nothing but a program can tell.
        """
        if self.made_for is not None:
            raise HoplonError(
                f"expected a protection that fits any model, got {self.label}, made for one that only a program tells "
                "from others; hp.harden(hp.capture(model, example), [...]) compares them"
            )

    def values(self, program: Program) -> Mapping[str, ValueProtection]:
        """Return value protections by site name; none by default."""
        return {}

    def arm(self, memory: Mapping[str, Tensor]) -> Guard | None:
        """Arm a guard on live memory, given by name; None by default: the protection does not guard memory."""
        return None


@dataclass(frozen=True)
class Unchanged(ValueProtection):
    """A protection that leaves every value as it is: it detects, or repeats the operator."""

    def __call__(self, value: Tensor) -> Tensor:
        """Copy the value."""
        return value.clone()

    @override
    def apply_(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Chain(ValueProtection):
    """Several protections of one site, in order."""

    links: tuple[ValueProtection, ...]

    @property
    @override
    def extra_bytes(self) -> int:
        return sum(link.extra_bytes for link in self.links)

    @property
    @override
    def detects(self) -> bool:
        return any(link.detects for link in self.links)

    @property
    def repeats(self) -> bool:
        """True if a link repeats; the comparison comes before all other links, whatever their order."""
        return any(link.repeats for link in self.links)

    @property
    @override
    def local(self) -> bool:
        return all(link.local for link in self.links)

    def __call__(self, value: Tensor) -> Tensor:
        """Apply each link to the result of the one before."""
        for link in self.links:
            value = link(value)
        return value

    def apply_(self, value: Tensor) -> Tensor:
        """Apply each link in place."""
        for link in self.links:
            value = link.apply_(value)
        return value

    def outside(self, value: Tensor) -> Tensor | None:
        """Return a mask of the values that any link takes for wrong in what it is given."""
        found: Tensor | None = None
        for link in self.links:
            wrong = link.outside(value)
            found = wrong if found is None else found if wrong is None else found | wrong
            value = link(value)
        return found


@checked
@dataclass(frozen=True, eq=False)
class Overlay:
    """The protections of one arm, resolved against a program. An empty overlay is the unprotected program."""

    label: str = "none"
    values: Mapping[str, ValueProtection] = field(default_factory=dict)
    protections: tuple[Protection, ...] = ()

    @property
    def is_hardware(self) -> bool:
        """True if a protection in it models hardware."""
        return any(protection.is_hardware for protection in self.protections)

    def guards(self, memory: Mapping[str, Tensor]) -> list[Guard]:
        """Arm the guards of all protections on this memory."""
        return list(self.labelled_guards(memory).values())

    def labelled_guards(self, memory: Mapping[str, Tensor]) -> dict[str, Guard]:
        """Arm them, by the label of their protection; a second one of a label gets a number: "tmr", "tmr.1"."""
        found: dict[str, Guard] = {}
        seen: Counter[str] = Counter()
        for protection in self.protections:
            guard = protection.arm(memory)
            if guard is not None:
                number = seen[protection.label]
                found[f"{protection.label}.{number}" if number else protection.label] = guard
                seen[protection.label] += 1
        return found


@checked
def overlay(program: Program, protections: Iterable[Protection], *, label: str | None = None) -> Overlay:
    """Resolve protections against a program.

    Raises:
        HoplonError: a protection that was made for another model: other weights, or sites that this one lacks.
    """
    chosen = tuple(protections)
    fingerprint = program.fingerprint() if any(protection.made_for for protection in chosen) else ""
    by_site: dict[str, list[ValueProtection]] = {}
    for protection in chosen:
        if protection.made_for not in (None, fingerprint):
            raise HoplonError(
                f"expected {protection.label} made for {program.name} with these weights, got one made for another "
                f"model (fingerprint {str(protection.made_for)[:12]}, here {fingerprint[:12]}); profile or score "
                "this one; ranges.for_any_weights() takes bounds over to a model trained further or in half precision"
            )
        for name, effect in protection.values(program).items():
            if name not in program.site_steps:
                raise HoplonError(
                    f"expected {protection.label} to protect sites of {program.name}, got {name!r}; "
                    "profile this model, not another"
                )
            by_site.setdefault(name, []).append(effect)
    values = {name: links[0] if len(links) == 1 else Chain(tuple(links)) for name, links in by_site.items()}
    return Overlay(label or "+".join(p.label for p in chosen) or "none", values, chosen)
