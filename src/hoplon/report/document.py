"""``results.json``: one assessment as plain values, from which the page is made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hoplon.errors import DataError, StoreError, checked
from hoplon.files import json_as, read_json, write_json
from hoplon.report.schema import Assessment, require_agreement
from hoplon.stats.intervals import Interval, Ratio

Document = Mapping[str, Any]


def plain(value: Any) -> Any:
    """The value as JSON has it, mappings and lists included: None for NaN and infinities.

    Example:
        >>> plain({"failure": float("nan"), "counts": (1, 2)})
        {'failure': None, 'counts': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_limits(name: str, interval: Interval | Ratio | None) -> dict[str, float | None]:
    """An estimate and its limits as ``name``, ``name_low`` and ``name_high``; None where nothing was measured.

    Example:
        >>> with_limits("failure", Interval(0.5, 0.25, 0.75, 0.95, "wilson"))
        {'failure': 0.5, 'failure_low': 0.25, 'failure_high': 0.75}
    """
    values = (None,) * 3 if interval is None else (interval.estimate, interval.low, interval.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def require_assessment(document: Document) -> None:
    """Refuse a document that is none of an assessment.

    Raises:
        DataError: a part is missing, has another form, or says what cannot be.
    """
    try:
        require_agreement(json_as(Assessment, json.dumps(document)))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"expected the document of an assessment, as Assessment.to_dict gives it, got {error}"
        ) from error


@checked
def write_document(path: str | os.PathLike[str], document: Document) -> Path:
    """Write the document as JSON, whole or not at all.

    Raises:
        StoreError: the folder is not writable.
    """
    write_json(path, document)
    return Path(path)


@checked
def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_document` wrote; ``path`` is the file or the folder with ``results.json``.

    Raises:
        StoreError: no such file, no JSON, or the document of something else.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        found: dict[str, Any] = read_json(file, Assessment)
        require_agreement(found)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"expected the results of an assessment at {file}, got {error}; hoplon demo and hoplon compare write them"
        ) from error
    return found
