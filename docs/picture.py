"""Draw ``docs/architecture.svg`` from the imports: rooms by layer, an arrow where a room imports another.

``python docs/picture.py``. Arrows that follow from others are left out (transitive reduction), so every arrow that is
drawn is an import, and every import is an arrow or a way along arrows. A test holds the picture to the code.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import grimp
import matplotlib as mpl
import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "hoplon", "font.family": "sans-serif", "font.size": 9}
ABOVE = "hoplon_studies"


def layers() -> list[list[str]]:
    """Rooms by layer, from the top, as the import contract in ``pyproject.toml`` has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = [[room.strip(" ()") for room in re.split("[:|]", row)] for row in rows]
    return [[ABOVE, *rooms[0]], *rooms[1:]]


def imports() -> nx.DiGraph:
    """Which room imports which, from the code."""
    graph = grimp.build_graph("hoplon", ABOVE)
    rooms = nx.DiGraph()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = [_room(name) for name in (module, imported)]
            if ends[0] != ends[1] and all(ends) and "__main__" not in ends:
                rooms.add_edge(*ends)
    return rooms


def _room(module: str) -> str:
    parts = module.split(".")
    return ABOVE if parts[0] == ABOVE else parts[1] if len(parts) > 1 else ""


def draw() -> Figure:
    """The whole picture."""
    rows = [row for row in layers() if set(row) & set(imports().nodes)]
    places = {
        room: ((column + 0.5) / len(row) * 10, -float(level))
        for level, row in enumerate(rows)
        for column, room in enumerate(row)
    }
    figure = Figure(figsize=(8, 0.72 * len(rows)))
    axes = figure.subplots()
    for room, (x, y) in places.items():
        _box(axes, room, x, y)
    for above, below in sorted(nx.transitive_reduction(imports()).edges):
        (x0, y0), (x1, y1) = places[above], places[below]
        bend = 0.0 if y0 - y1 < 1.5 else (0.3 if x1 >= x0 else -0.3)
        arrow = {
            "arrowstyle": "-|>",
            "color": "#555555",
            "connectionstyle": f"arc3,rad={bend}",
            "lw": 0.9,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate("", (x1, y1 + 0.24), (x0, y0 - 0.24), arrowprops=arrow)
    axes.set(xlim=(0, 10), ylim=(-len(rows) + 0.4, 0.6))
    axes.axis("off")
    return figure


def _box(axes: Axes, room: str, x: float, y: float) -> None:
    color = "#e8eef7" if room != ABOVE else "#f4ead5"
    style = {"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "#34507a", "linewidth": 0.9}
    axes.text(x, y, room, ha="center", va="center", bbox=style, zorder=3)


def write(path: Path) -> None:
    """Write the picture; the same code gives the same bytes."""
    with mpl.rc_context(STYLE):
        draw().savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    write(PICTURE)
