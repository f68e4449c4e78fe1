"""Which settings Comma is trained with: errors on stretches of the training part that a network has not seen.

Writes ``src/hoplon/zoo/validated.json``, which the study of Ranger shows; the recipe holds the setting of the smallest
error. Frames that are held out take no part. Needs the driving frames in ``HOPLON_DATA``; half an hour on one core.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hoplon.formats.digest import content_digest
from hoplon.zoo.datasets._driving import frames
from hoplon_studies.training.recipes import RECIPES, training_set
from hoplon_studies.training.validation import FOLDS, GAP, RECORD, Validation, validate, variants

ROOT = Path(__file__).resolve().parents[1]


def record(found: Sequence[Validation], *, data: str) -> dict[str, Any]:
    """Results of a comparison of recipes as plain values; ``data`` is the digest of the training part."""
    return {
        "model": "comma-driving",
        "stretches": FOLDS,
        "gap_frames": GAP,
        "data": data,
        "torch": torch.__version__,
        "settings": [asdict(one) for one in found],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one setting, one epoch, two stretches; writes nothing")
    parser.add_argument("--json", type=Path, help="where to write; beside the recipes by default")
    options = parser.parse_args(arguments)
    console = Console(width=140)
    if "HOPLON_DATA" not in os.environ:
        console.print("no HOPLON_DATA: no driving frames, nothing to validate")
        return
    chosen = variants(RECIPES["comma-driving"])
    if options.quick:
        chosen = (replace(chosen[0], epochs=1),)
    found = []
    for recipe in chosen:
        found.append(validate(recipe, frames(), folds=2 if options.quick else FOLDS))
        console.print(found[-1])
    content = record(found, data=content_digest([*training_set("driving")]))
    path = options.json or (None if options.quick else ROOT / "src" / "hoplon_studies" / "training" / RECORD)
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
