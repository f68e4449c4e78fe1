"""Results as a page for people and a document for machines."""

from __future__ import annotations

from hoplon.report.document import read_document, write_document
from hoplon.report.page import render, write_page
from hoplon.report.ranking import by_layer_figure, heat_map_figure, write_ranking
from hoplon.report.verdict import Paragraph, verdict

__all__ = [
    "Paragraph",
    "by_layer_figure",
    "heat_map_figure",
    "read_document",
    "render",
    "verdict",
    "write_document",
    "write_page",
    "write_ranking",
]
