"""What a reader would mind on a page: sentences said over and over, and reasons that are none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

LONG, OFTEN = 6, 3  # a sentence has so many words of two letters at least, and may be there so often
UNTRUE = ("stands in", "nothing to run", "in a chart alone", "CPU, batch", "frames of a simulator", "another simulator")


def repeated(page: str) -> dict[str, int]:
    """Sentences and cells of some length that a page has too often."""
    parts = (part.strip(" |*.") for line in page.splitlines() for part in re.split(r"(?<=\.) | \| |; ", line))
    counts = Counter(part for part in parts if len(re.findall(r"[A-Za-z]{2,}", part)) >= LONG)
    return {part: count for part, count in counts.items() if count > OFTEN}


def default_reasons(document: Mapping[str, Any]) -> list[str]:
    """Reasons of rows with a figure that stand in too many of them, or are known to be untrue."""
    counts = Counter(row["why"] for row in document["rows"] if row["why"] and row["here"] is not None)
    untrue = [why for why in counts if any(words in why for words in UNTRUE)]
    return [why for why, count in counts.items() if count > OFTEN] + untrue
