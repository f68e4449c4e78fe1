"""A study: named parts, each run once and kept, and what they are given to work with."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, final

import torch

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.manifest import versions
from hoplon.campaign.results import Results
from hoplon.comparison.costs.latency import conditions
from hoplon.errors import HoplonError, no_match
from hoplon.files import json_as
from hoplon.formats.digest import content_digest
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.resolve import resolve_data
from hoplon.zoo.seeding import Progress
from hoplon_studies.framework.claims import Claim, Evidence
from hoplon_studies.framework.findings import Finding, Findings, Source
from hoplon_studies.framework.folder import StudyFolder, keep_value, kept_value
from hoplon_studies.framework.profiles import Profile
from hoplon_studies.framework.rows import Row

Tell = Callable[[str, int, int | None], None]
Own = tuple[ZooModel, ZooData]
T = TypeVar("T")

RUNS = "study-runs"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@final
@dataclass(frozen=True)
class Part:
    """One heading of the page: ``name`` (of files, lower case), ``title``, and what finds its rows and figures."""

    name: str
    title: str
    run: Callable[[Context], Iterable[Finding]] = field(repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise HoplonError(f"expected the name of a part of a-z, 0-9 and '-', got {self.name!r}")


@final
@dataclass(frozen=True)
class Study:
    """A paper's evaluation as parts, in the order of the page.

    ``name``: of the command and the files; ``introduction``: paragraphs, of which the first stands above the
    verdicts and the others below them; ``claims``: what the
    paper claims, judged by the rows of all parts that are there.
    """

    name: str
    title: str
    introduction: tuple[str, ...]
    parts: tuple[Part, ...]
    claims: Callable[[Evidence], Iterable[Claim]] = field(default=lambda _: (), repr=False)

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise HoplonError(f"expected parts of different names, got {', '.join(names)}")

    def part(self, name: str) -> Part:
        """The part of this name.

        Raises:
            SiteError: there is none; the message lists near names.
        """
        found = {part.name: part for part in self.parts}
        if name not in found:
            raise no_match(f"part of study {self.name}", name, tuple(found))
        return found[name]


@final
class Published(dict[str, Any]):
    """Published values of one paper by key, from ``published/NAME.json``, which says where each is printed."""

    def __init__(self, name: str) -> None:
        file = files("hoplon_studies") / "published" / f"{name}.json"
        entries = json_as(dict[str, Any], file.read_bytes())["values"] if file.is_file() else []
        super().__init__((entry["key"], entry["value"]) for entry in entries)
        self._name = name

    def __missing__(self, key: str) -> Any:
        raise no_match(f"published value of {self._name}", key, tuple(self))


@final
@dataclass(frozen=True)
class Context:
    """Settings of a run, and the means by which a part runs campaigns and keeps values.

    Attributes:
        study: the study it belongs to.
        profile: the counts.
        seed: of everything that is drawn.
        runs: this part's folder for run directories.
        own: the user's model and data, where the study is asked to run them as well.
        tell: told a stage, what is done of it, and all there is to do.
        published: the paper's values.
        command: what starts this study again.
        root: the study's folder, to which run directories are named relatively.
        load_data: gives data of the zoo by name.
        made: by :meth:`once`, shared by the parts of one run.
    """

    study: Study
    profile: Profile
    seed: int
    runs: Path
    own: Own | None
    tell: Tell = field(repr=False)
    published: Published = field(repr=False)
    command: str
    root: Path
    load_data: Callable[[str], ZooData] = field(default=resolve_data, repr=False)
    made: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """A value made once for all parts of one run and kept in memory, such as a loaded network."""
        if name not in self.made:
            self.made[name] = make()
        value: T = self.made[name]
        return value

    def data(self, name: str) -> ZooData:
        """Data of the zoo, loaded once; errors as :func:`hoplon.zoo.resolve.resolve_data`."""
        return self.once(f"data {name}", partial(self.load_data, name))

    def campaign(self, name: str, campaign: Campaign, *, count: int) -> Results:
        """Results of a campaign in this part's folder, run now, gone on with, or there already.

        Args:
            name: of the run directory inside ``runs``; may name folders ("resnet20/random").
        """
        progress, store = partial(self.tell, name), self.runs / name
        return campaign.run(count=count, seed=self.seed, store=store, resume=True, progress=progress)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that JSON can hold, made once: what differs from run to run, such as a time, stays the same.

        Args:
            name: of the file inside ``runs``, without ".json".
        """
        file = self.runs / f"{name}.json"
        if not file.exists():
            keep_value(file, make())
        return kept_value(file)

    def timed(self, name: str, make: Callable[[], Any], *, stage: str) -> Any:
        """A value as :meth:`kept` keeps it that takes its time: told as one stage, before and after."""
        self.tell(stage, 0, 1)
        value = self.kept(name, make)
        self.tell(stage, 1, 1)
        return value

    def training(self, name: str) -> Progress:
        """What is told after every epoch of a training, as one stage."""
        return lambda done, total, loss: self.tell(f"training {name}, loss {loss:.3g}", done, total)

    def source(self, what: str, *, fault_model: str, runs: Sequence[str] = (), seed: int | None = None) -> Source:
        """Source of figures of this part.

        Args:
            runs: names of run directories of this part, as `campaign` was given them.
            seed: of what was drawn; None where nothing was.
        """
        paths = tuple(str((self.runs / name).relative_to(self.root)) for name in runs)
        return Source(what, fault_model, seed, paths, self.command)


@final
@dataclass(frozen=True)
class StudyResult:
    """Findings of a study so far: its manifest, and the findings of its finished parts in the study's order."""

    study: Study
    manifest: Mapping[str, Any] = field(repr=False)
    findings: Mapping[str, Findings] = field(repr=False)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all finished parts, in the order of the page."""
        return tuple(row for findings in self.findings.values() for row in findings.rows)

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What the paper claims, judged by the rows."""
        return tuple(self.study.claims(Evidence(self.rows, Published(self.study.name))))

    @cached_property
    def unfinished(self) -> tuple[str, ...]:
        """Parts that have not been run."""
        return tuple(part.name for part in self.study.parts if part.name not in self.findings)


def run_study(
    study: Study,
    *,
    out: Path,
    profile: Profile,
    seed: int = 0,
    own: Own | None = None,
    command: Sequence[str] = (),
    only: Sequence[str] = (),
    again: Sequence[str] = (),
    tell: Tell | None = None,
    say: Callable[[str], None] | None = None,
    load_data: Callable[[str], ZooData] = resolve_data,
) -> StudyResult:
    """Run the parts that have not finished in ``out/study-runs/NAME``, keep each, and give the findings of all.

    Args:
        out: the folder for pages; several studies may share it.
        own: a model and data of the user's, run beside those of the study.
        command: as typed, for the page.
        only: names of the parts to run; all by default.
        again: names of parts that are found anew, from the run directories they left: after weights or data came.
        tell: told a stage, what is done of it, and all there is to do.
        say: told which part begins and how long it took.
        load_data: gives data by name; the zoo's by default.
    Raises:
        HoplonError: an unknown part, or what a part refuses.
        StoreError: the folder holds a study of another name, profile, seed, model or version.
    """
    chosen = [study.part(name) for name in only] or list(study.parts)
    folder = StudyFolder(out / RUNS / study.name)
    manifest = folder.begin(_identity(study, profile, seed, own), _circumstances(command))
    for name in again:
        folder.forget(study.part(name).name)
    context = Context(
        study=study,
        profile=profile,
        seed=seed,
        runs=folder.path,
        own=own,
        tell=tell or (lambda stage, done, total: None),
        published=Published(study.name),
        command=manifest["command"],
        root=folder.path,
        load_data=load_data,
    )
    for part in chosen:
        if folder.finished(part.name) is None:
            started = time.perf_counter()
            if say is not None:
                say(f"study {study.name}, {part.name}: {part.title}")
            found = Findings.of(part.run(replace(context, runs=folder.runs_of(part.name))))
            folder.keep(part.name, found)
            if say is not None:
                say(f"study {study.name}, {part.name}: {time.perf_counter() - started:.1f} s")
    kept = {part.name: folder.finished(part.name) for part in study.parts}
    return StudyResult(study, manifest, {name: findings for name, findings in kept.items() if findings is not None})


def _identity(study: Study, profile: Profile, seed: int, own: Own | None) -> dict[str, Any]:
    """Settings that a folder must agree in to be gone on with."""
    counts = getattr(profile, study.name, None)
    return {
        "study": study.name,
        "profile": profile.name,
        "counts": None if counts is None else asdict(counts),
        "seed": seed,
        "model": None if own is None else own[0].name,
        "weights": None if own is None else content_digest(dict(own[0].module.state_dict())),
        "data": None if own is None else own[1].name,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _circumstances(command: Sequence[str]) -> dict[str, Any]:
    """When and where a study began."""
    return {
        "begun": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(command) or "hoplon_studies.run_study from Python",
        "machine": conditions(torch.device("cpu")),
    }
