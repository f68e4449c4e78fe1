"""The evaluation of Aspis (Schmedding, Yang, Jog and Smirni), part by part."""

from __future__ import annotations
