"""Files that torch would read, checked before it does: nothing in them is run."""

from __future__ import annotations
