from .framework.findings import Findings as Findings, Source as Source, Table as Table
from .framework.page import Pages as Pages, write_pages as write_pages
from .framework.profiles import PROFILES as PROFILES, Profile as Profile, profile_named as profile_named
from .framework.rows import Row as Row
from .framework.study import (
    Context as Context,
    Part as Part,
    Study as Study,
    StudyResult as StudyResult,
    run_study as run_study,
)
