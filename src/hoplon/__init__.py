"""hoplon: what soft errors do to a trained network, where it is vulnerable, and what hardens it at which price.

Names of the first week are here; the others are in their rooms: ``hp.guards.Checksum``, ``hp.strata.ByBit``,
``hp.costs.count_flops``. The list is ``__init__.pyi``; nothing is imported before it is used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
