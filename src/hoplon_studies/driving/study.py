"""The case study of Aspis with the loop closed: a student drives, faults strike its weights, and then?"""

from __future__ import annotations

from functools import partial

from hoplon_studies.driving.claims import headlines
from hoplon_studies.driving.parts import drivers, one_setting
from hoplon_studies.driving.settings import SETTINGS
from hoplon_studies.driving.text import INTRODUCTION, capital
from hoplon_studies.framework.command import command_of
from hoplon_studies.framework.study import Part, Study

STUDY = Study(
    name="driving",
    title="Closed-loop driving: the case study of Aspis beside hoplon's",
    introduction=INTRODUCTION,
    parts=(
        Part("drivers", "Drivers without faults", drivers),
        *(Part(setting.name, capital(setting.title), partial(one_setting, setting)) for setting in SETTINGS),
    ),
    claims=headlines,
)

COMMAND = command_of(STUDY)
"""Run by ``hoplon study driving``."""
