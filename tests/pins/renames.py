"""What has another name by now: old name to new name, one line for each renaming.

Digests are made of the old names, so they stay what they were when something is only called differently.
"""

from __future__ import annotations

from collections.abc import Mapping

# Columns of fault tables and of runs; of runs also those that are named after a criterion.
COLUMNS: dict[str, str] = {}
# Values of the columns of criteria.
OUTCOMES: dict[str, str] = {"exception": "crash"}
# Kinds of operators, in the names of value sites.
KINDS: dict[str, str] = {}
# Number formats.
FORMATS: dict[str, str] = {}
# Protections, at the start of the names of what guards hold.
LABELS: dict[str, str] = {}


def renamed(names: Mapping[str, str], old: str) -> str:
    """What this is called now."""
    return names.get(old, old)


def pinned_name(names: Mapping[str, str], new: str) -> str:
    """What this was called when it was pinned."""
    return {now: old for old, now in names.items()}.get(new, new)
