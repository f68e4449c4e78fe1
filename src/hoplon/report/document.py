"""``results.json``: one assessment as plain values, from which the page is made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hoplon.errors import StoreError
from hoplon.files import write_atomically

Document = Mapping[str, Any]

FORMAT = 1
_NEEDED = ("arms", "by_bit", "by_layer", "population", "seed", "versions")


def write_document(path: str | os.PathLike[str], document: Document) -> Path:
    """Write the document as JSON, whole or not at all.

    Raises:
        StoreError: the folder is not writable.
    """
    target = Path(path)
    write_atomically(target, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return target


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_document` wrote; ``path`` is the file or the folder with ``results.json``.

    Raises:
        StoreError: no such file, no JSON, or the document of something else.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"expected results.json of an assessment at {file}, got {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or any(key not in found for key in _NEEDED):
        raise StoreError(
            f"expected the results of an assessment (format {FORMAT}) in {file}, got another document; "
            "hoplon demo and hoplon compare write one"
        )
    return found
