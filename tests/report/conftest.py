"""One small assessment, made once."""

from __future__ import annotations

from typing import Any

import pytest

from hoplon.comparison.assessment import AssessmentPlan, assess
from hoplon.program.capturing import capture
from tests.support.networks import small_data, small_net


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    held_out, calibration = small_data()
    program = capture(small_net(), held_out.tensors[0][:4], name="small")
    plan = AssessmentPlan(value_faults=300, memory_faults=12, latency=False)
    return assess(program, calibration=calibration, held_out=held_out, plan=plan).to_dict()
