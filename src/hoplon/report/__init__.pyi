from .document import read_document as read_document, write_document as write_document
from .evidence import evidence_of as evidence_of, render_evidence as render_evidence, write_evidence as write_evidence
from .page import render as render, write_page as write_page
from .ranking import (
    by_layer_figure as by_layer_figure,
    heat_map_figure as heat_map_figure,
    write_ranking as write_ranking,
)
from .verdicts import Paragraph as Paragraph, verdict as verdict
