"""From the probability of failure given a fault to a decision: rates, a budget, a gate, the evidence."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
