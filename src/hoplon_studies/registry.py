"""The studies by name; one is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from hoplon.errors import no_match
from hoplon_studies.framework.study import Study

_MODULES = {
    "ranger": "hoplon_studies.ranger",
    "aspis": "hoplon_studies.aspis",
    "driving": "hoplon_studies.driving",
}


def study_names() -> tuple[str, ...]:
    """Names that ``study_named`` knows.

    Example:
        >>> "aspis" in study_names()
        True
    """
    return tuple(_MODULES)


def study_named(name: str) -> Study:
    """The study of this name.

    Raises:
        SiteError: there is none; the message lists near names.
    """
    if name not in _MODULES:
        raise no_match("study", name, study_names())
    found: Study = import_module(_MODULES[name]).STUDY
    return found
