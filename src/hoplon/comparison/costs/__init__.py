"""What a protection costs: latency, operations, memory."""

from __future__ import annotations
