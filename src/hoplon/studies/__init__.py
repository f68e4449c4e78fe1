"""The papers' evaluations as commands: each table and figure beside what is found here."""

from __future__ import annotations

from hoplon.studies.findings import Findings, Source, Table
from hoplon.studies.page import Pages, write_pages
from hoplon.studies.profiles import PROFILES, Profile, profile_named
from hoplon.studies.registry import study_named, study_names
from hoplon.studies.rows import Row
from hoplon.studies.study import Context, Part, Study, StudyResult, run_study

__all__ = [
    "PROFILES",
    "Context",
    "Findings",
    "Pages",
    "Part",
    "Profile",
    "Row",
    "Source",
    "Study",
    "StudyResult",
    "Table",
    "profile_named",
    "run_study",
    "study_named",
    "study_names",
    "write_pages",
]
