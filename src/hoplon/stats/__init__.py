"""Statistics: intervals, stratified estimates, allocation. Needs numpy and scipy only."""

from __future__ import annotations
