"""Protections of a network: bounds on values in flight, guards of stored words, and modules that carry both."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
