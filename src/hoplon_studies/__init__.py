"""The papers' evaluations as commands: each table and figure beside what is found here."""

from __future__ import annotations

from hoplon_studies.framework.findings import Findings, Source, Table
from hoplon_studies.framework.page import Pages, write_pages
from hoplon_studies.framework.profiles import PROFILES, Profile, profile_named
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context, Part, Study, StudyResult, run_study
from hoplon_studies.registry import study_named, study_names

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
