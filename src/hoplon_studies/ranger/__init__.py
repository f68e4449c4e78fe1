"""The evaluation of Ranger (Chen, Li and Pattabiraman), part by part."""

from __future__ import annotations
