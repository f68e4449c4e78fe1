"""Campaigns that run until a precision is reached."""

from __future__ import annotations
