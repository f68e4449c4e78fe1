"""Results as a page for people and a document for machines."""

from __future__ import annotations

from hoplon.report.document import read_document, write_document
from hoplon.report.page import render, write_page
from hoplon.report.verdict import Paragraph, verdict

__all__ = ["Paragraph", "read_document", "render", "verdict", "write_document", "write_page"]
