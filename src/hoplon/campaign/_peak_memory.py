"""The most memory that this process has held so far."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int | None:
    """Resident memory at its highest, of this process without its children; None where the platform does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
