"""What is driven on and with: roads, an obstacle, the car, its controller and its camera."""

from __future__ import annotations
