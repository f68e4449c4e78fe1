"""A whole campaign as settings: from a TOML file, overridden on the command line, checked, and kept beside the run."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, final

import torch

from hoplon.campaign.campaign import Campaign
from hoplon.cli.options import components as parts
from hoplon.cli.options.command_line import FAULTS, HARM, PROTECTIONS, RUN, SITES, SIZE, Said, shorthands
from hoplon.cli.options.schema import ValuesError, check_values, from_text
from hoplon.comparison.learned import Learned
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.generation import Generation
from hoplon.errors import Count, DataError, HoplonError, Seed, Share, StoreError
from hoplon.faults.model import FaultModel
from hoplon.faults.multi_word import check_words
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.plans import Exhaustive
from hoplon.faults.single_word import BitFlip
from hoplon.files import json_as, read_bytes, write_json
from hoplon.injection.packing import Kernels
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory, Values
from hoplon.protections.base import Protection
from hoplon.registry import Kind, Reader, fields_of
from hoplon.zoo.entries import ZooData

SETTINGS = "settings.json"


_SITES = "Pattern of site names, such as 'layer1.*'; repeatable."
_HALF_WIDTH = (
    "Stop when the half-width of the confidence interval of the failure probability is below this value, e.g. 0.005."
)


@final
@dataclass(frozen=True, eq=False)
class Settings:
    """One campaign, checked; ``raw``: as it was given.

    The keys of a file, the options of ``hoplon inject`` and these fields are one list.
    """

    model: str
    data: str
    raw: Mapping[str, Any] = field(repr=False)
    target: Annotated[
        Literal["values", "memory"], Said("values (operator outputs, the default) or memory (weights, buffers)", SITES)
    ] = "values"
    sites: Annotated[tuple[str, ...], Said(_SITES, SITES)] = ("*",)
    kind: Annotated[
        tuple[str, ...] | None, Said("Kind of operator, such as conv (memory: that reads it); repeatable", SITES)
    ] = None
    dtype: Annotated[torch.dtype | None, Said("Dtype of the sites (default: floating point)", SITES)] = None
    buffers: Annotated[bool, Said("With --target memory: buffers too", SITES)] = True
    fault: Annotated[
        FaultModel,
        Reader("a fault model", parts.fault_model),
        Said("Fault model, such as bitflip, stuck-at:1 or bitflip(count=2); see hoplon ls faults", FAULTS),
    ] = field(default_factory=BitFlip)
    criterion: Annotated[
        Criterion,
        Reader("a criterion or a list of such", parts.criterion),
        Said("What counts as harm, such as top-1 or steering; see hoplon ls criteria; repeatable", HARM),
    ] = field(default_factory=TopK)
    sampling: Annotated[
        parts.Described[Sampling],
        Reader("a sampling", parts.sampling),
        Said("Which faults are drawn, such as element, op or top-score:1%; see hoplon ls samplings", SITES),
    ] = field(default_factory=lambda: parts.sampling("element"))
    protection: Annotated[
        tuple[parts.Described[Protection], ...],
        Reader("a protection or a list of such", parts.protections),
        Said(
            "Protection in place, such as ranger(quantile=99.9%) or aspis:1%; see hoplon ls protections; repeatable, "
            "or joined by +",
            PROTECTIONS,
        ),
    ] = ()
    placement: Annotated[
        Placement, Said("Value faults strike before (the default) or after the protection of their site", PROTECTIONS)
    ] = "before"
    arrival: Annotated[
        Arrival, Said("Memory faults strike before (the default) or after the check of guards", PROTECTIONS)
    ] = "before"
    kernels: Annotated[
        Kernels, Said("exact (the default) or, for value faults, packed: faster, rounds otherwise within 1e-4", RUN)
    ] = "exact"
    new_tokens: Annotated[
        Count | None,
        Said("Have a language model generate so many tokens, and strike that", SITES),
    ] = None
    prompt_tokens: Annotated[
        Count | None, Said("With --new-tokens: the first tokens of a sample are its prompt (default: all)", SITES)
    ] = None
    inputs: Annotated[Count | None, Said("Number of held-out inputs (default: all)", SIZE)] = None
    calibration: Annotated[
        Count | None, Said("Number of calibration samples for ranges and scores (default: all)", SIZE)
    ] = None
    count: Annotated[Count | None, Said("Number of faults to inject", SIZE)] = None
    half_width: Annotated[Share | None, Said(_HALF_WIDTH, SIZE)] = None
    confidence: Annotated[Share, Said("Confidence of all intervals (default: 0.95)", SIZE)] = 0.95
    seed: Annotated[Seed, Said("Seed of faults, inputs and new weights (default: 0)", RUN)] = 0
    batch: Annotated[Count | None, Said("Samples per forward pass (default: chosen from the model's size)", RUN)] = None
    threads: Annotated[Count | None, Said("CPU threads (default: torch's own setting)", RUN)] = None
    workers: Annotated[Count, Said("Number of processes that share the work (default: 1)", RUN)] = 1
    out: Annotated[str, Said("Run directory (default: hoplon-run)", RUN)] = "hoplon-run"

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, source: str = "") -> Self:
        """Check settings and build what they describe.

        Args:
            source: the file that messages name.
        Raises:
            HoplonError: unknown keys, missing ones, values of another type or out of range; names all of them.
        """
        try:
            fields = {name: entry for name, entry in fields_of(cls).items() if name != "raw"}
            settings = check_values(raw, fields, missing="give MODEL and DATA, or --config")
            if settings.get("count") is not None and settings.get("half_width") is not None:
                raise HoplonError(
                    f"expected count or half_width, got both: {settings['count']} and {settings['half_width']}"
                )
            if settings.get("kernels") == "packed" and settings.get("target") == "memory":
                raise HoplonError("kernels: expected 'exact' for faults in memory, which packed weights would not meet")
            if "prompt_tokens" in raw and settings.get("new_tokens") is None:
                raise HoplonError("prompt_tokens: expected new_tokens beside it, got none")
            if "buffers" in raw and settings.get("target") != "memory":
                raise HoplonError("buffers: expected target 'memory' beside it, got 'values'")
        except ValuesError as error:
            raise ValuesError(error.problems, source=source) from error
        except HoplonError as error:
            kind = type(error) if isinstance(error, DataError | StoreError) else HoplonError
            raise kind(f"{source}: {error}" if source else str(error)) from error
        return cls(raw=dict(raw), **settings)

    def check(self, program: Program) -> None:
        """Refuse, before anything is learned from data, a fault model that does not fit the words of a captured model.

        Raises:
            HoplonError, SiteError: bits outside of a word, sites that match nothing.
        """
        check_words(self.fault, self.selection().select(program))

    def require_goal(self) -> None:
        """Refuse a goal that the sampling has no use for, and none where it needs one.

        Raises:
            HoplonError: says which.
        """
        if self.half_width is not None and self.half_width >= 0.5:
            raise HoplonError(f"half_width: expected a number above 0 and below 0.5, got {self.half_width}")
        sampling = self.sampling.component
        goal = "half_width" if self.count is None else "count"
        if sampling.defined is Exhaustive and getattr(self, goal) is not None:
            raise HoplonError(
                f"expected no {goal} for the sampling {sampling.name}, which strikes every fault once, got "
                f"{getattr(self, goal)}; leave it out, or choose another sampling"
            )
        if getattr(self, goal) is None and getattr(sampling.defined, "size", Sampling.size) is Sampling.size:
            raise HoplonError(
                "expected exactly one of count and half_width, got neither; count = 1000, or --count 1000"
            )

    def selection(self) -> Values | Memory:
        """Return the selection of sites that faults strike."""
        if self.target == "memory":
            return Memory(self.sites, kind=self.kind, dtype=self.dtype, buffers=self.buffers)
        return Values(self.sites, kind=self.kind, dtype=self.dtype)

    def learned(self, program: Program, data: ZooData) -> Learned:
        """Return what protections and samplings may learn from the data; of memory, scores of what is struck."""
        known, sites = data.calibration.sample(self.calibration, seed=self.seed), self.selection()
        return Learned(program, known, weights=sites if isinstance(sites, Memory) else None, seed=self.seed)

    def built(self, learned: Learned) -> tuple[Protection, ...]:
        """Return the protections."""
        return tuple(part(learned) for part in self.protection)

    def campaign(self, program: Program, data: ZooData) -> Campaign:
        """Return the campaign on a captured model and its data, from which protections learn what they lack."""
        self.check(program)
        generates = self.new_tokens is not None
        learned = self.learned(program, data)
        return Campaign(
            program,
            self.samples(data),
            sites=self.selection(),
            fault_model=self.fault,
            criterion=Generation() if generates and "criterion" not in self.raw else self.criterion,
            sampling=self.sampling(learned),
            protections=self.built(learned),
            placement=self.placement,
            arrival=self.arrival,
            kernels=self.kernels,
            batch=self.batch,
        )

    def samples(self, data: ZooData) -> Inputs:
        """Return the held-out inputs that faults meet; of a decoding loop, the prompts."""
        held_out = data.held_out.sample(self.inputs, seed=self.seed)
        if self.new_tokens is None:
            return held_out
        return Inputs(held_out.tensors[0][:, : self.prompt_tokens].contiguous(), name=held_out.name)

    def keep(self, folder: Path) -> None:
        """Write the settings beside the run."""
        write_json(folder / SETTINGS, self.raw)


def read_raw(path: Path) -> dict[str, Any]:
    """Read the settings of a TOML file, or in the ``settings.json`` of a run, unchecked.

    Raises:
        HoplonError: no such file, or one that is neither.
    """
    try:
        content = read_bytes(path)
        found = json_as(dict[str, Any], content) if path.suffix == ".json" else tomllib.loads(content.decode())
    except (OSError, ValueError) as error:  # both parsers raise kinds of ValueError
        raise HoplonError(f"expected a campaign file in TOML at {path}, got {error}; give another file") from error
    if not isinstance(found, dict):
        raise HoplonError(f"expected keys and values in {path}, got {type(found).__name__}")
    return found


def merged(raw: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the options of a command line over the settings of a file.

    Args:
        raw: of the file.
        given: options by name, None: not given; keys of :class:`Settings`, and fields of fault models and samplings.
            The name of a fault model or sampling starts its table afresh.
    Raises:
        ValuesError: fields for one of several fault models of the file.
    """
    fields = fields_of(Settings)
    options = plain_options(given, fields)
    found = {**raw, **options}
    for goal, other in (("count", "half_width"), ("half_width", "count")):
        if goal in options and other not in options:
            found.pop(other, None)
    for kind in NAMED:
        shorts = {field: given.get(option) for option, field in own_options(kind).items()}
        chosen = {field: value for field, value in shorts.items() if value not in _NOT_GIVEN}
        if chosen:
            found[kind] = with_fields(kind, found.get(kind, DEFAULTS[kind]), chosen)
    return found


def plain_options(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return what a file would hold for the options of these names that were given."""
    fields = fields_of(Settings)
    return {name: _plain(fields[name][0], given[name]) for name in names if given.get(name) not in _NOT_GIVEN}


def with_fields(kind: Kind, described: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Lay fields from the command line over a component's description.

    Raises:
        ValuesError: several components, a description that cannot be read, or that has one of the fields already.
    """
    if isinstance(described, list):
        raise ValuesError([(kind, "expected one table to override options of, got a list; name it anew")])
    try:
        component, table = parts.table_of(kind, described)
    except ValuesError as error:
        raise ValuesError(error.below(kind)) from error
    fields = parts.fields_of(component)
    twice = [key for key in chosen if isinstance(described, str) and key in table]
    if twice:
        raise ValuesError(
            [
                (f"{kind}.{key}", f"expected it once, got it in {described} and {chosen[key]!r} beside it")
                for key in twice
            ]
        )
    texts = {key: _plain(fields[key][0], value) if key in fields else value for key, value in chosen.items()}
    return {"name": component.name, **table, **texts}


def _plain(annotation: Any, given: Any) -> Any:
    """What a file would hold for what the command line gave: once as it is, repeated as one list."""
    if not isinstance(given, list | tuple):
        return from_text(annotation, given)
    values = [from_text(annotation, one) for one in given]
    if len(values) == 1:
        return values[0]
    return [part for value in values for part in (value if isinstance(value, list) else [value])]


def own_options(kind: Kind) -> dict[str, str]:
    """Return the field by the option that gives it to the fault model or the sampling, as far as the name is free."""
    taken = {*fields_of(Settings), *(option for other in NAMED[: NAMED.index(kind)] for option in own_options(other))}
    return {option: field for option, (field, _) in shorthands(kind).items() if option not in taken}


_NOT_GIVEN: Any = (None, [], ())
NAMED: tuple[Kind, ...] = ("fault", "sampling")
"""Settings that are one component, whose plain fields are options of their own."""
DEFAULTS: Mapping[Kind, str] = {"fault": "bitflip", "sampling": "element"}
