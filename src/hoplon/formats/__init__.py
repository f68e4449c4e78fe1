"""Number formats: how a value is held in bits, and what a fault in those bits makes of it.

A word travels as int64 holding its unsigned value; a 64-bit word as its two's complement.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
