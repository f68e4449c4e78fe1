"""Runs as early versions stored them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def as_early(folder: Path) -> None:
    """Take out what early versions did not write: digests, seals, the manifest's digest in the design."""
    shutil.rmtree(folder / "digests")
    for name in ("manifest.json", "design.json"):
        content = json.loads((folder / name).read_text())
        kept = {key: value for key, value in content.items() if key not in ("seal", "manifest")}
        (folder / name).write_text(json.dumps(kept, indent=1))
