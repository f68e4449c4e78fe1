"""The pytest fixture ``hoplon_gate``, an entry point of pytest: a build that misses its requirement fails a test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from hoplon.assurance.gate import Judgement
    from hoplon.campaign.campaign import Campaign


class HoplonGate(Protocol):
    """What the fixture gives."""

    def __call__(
        self, campaign: Campaign, *, baseline: str | os.PathLike[str] | None = None, seed: int = 0, **limits: Any
    ) -> Judgement:
        """Judge a build; the test fails unless it passes.

        Args:
            campaign: the build, as :meth:`hoplon.assurance.Gate.judge` takes it.
            baseline: the file of a recorded build.
            seed: of faults that are not the baseline's.
            limits: ``max_failure``, ``max_increase``, ``confidence``, ``most``, as of :class:`hoplon.assurance.Gate`.
        """


@pytest.fixture
def hoplon_gate() -> HoplonGate:
    """Return a function that fails the test unless a build keeps to its limits."""

    def judged(
        campaign: Campaign, *, baseline: str | os.PathLike[str] | None = None, seed: int = 0, **limits: Any
    ) -> Judgement:
        __tracebackhide__ = True
        from hoplon.assurance.baseline import Baseline
        from hoplon.assurance.gate import Gate

        known = None if baseline is None else Baseline.load(baseline)
        found = Gate(**limits).judge(campaign, baseline=known, seed=seed)
        if found.verdict != "pass":
            pytest.fail(f"hoplon gate, {found}", pytrace=False)
        return found

    return judged
