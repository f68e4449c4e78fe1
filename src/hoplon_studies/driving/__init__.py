"""The case study of Aspis with the loop closed: a student drives, faults strike its weights, and then?"""

from __future__ import annotations
