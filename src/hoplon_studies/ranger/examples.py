"""Figure 4: pictures of failures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hoplon.campaign.results import Results
from hoplon.faults.table import FaultTable
from hoplon_studies.framework.figures import Figure, picture
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Network, each_network
from hoplon_studies.ranger.runs import FIXED32, Campaigns

_PICTURES = 4
_LINE = 20  # pixels of a line of a caption
_GAP = 6
_STEEPEST = 80.0  # degrees of a line that is drawn
_HEIGHT = 160  # of a picture, at least, as far as whole pixels fit
_MEANS = {"cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "cifar10-plain": ((0.0,) * 3, (1 / 255,) * 3)}


def pictures(context: Context) -> Iterator[Finding]:
    """Inputs that one fault made a network misread, and what it made of them."""
    rows: list[tuple[str | int, ...]] = []
    campaigns = Campaigns(context)
    for network in each_network(context):
        if not isinstance(network, Network):
            continue
        classes = context.data(network.listing.data).classes
        if found := _found(campaigns.run(network, "none"), network, classes):
            yield _strip(network, found)
            rows += [(network.listing.label, *entry[1:]) for entry in found]
    yield Table(
        "The pictures, from left to right",
        ("network", "struck operator", "bit", "fault-free", "faulty", "true"),
        tuple(rows),
        detail=True,
    )
    if rows:
        yield (
            "One bit of 21.10 fixed point is flipped in each. Angles are in degrees, left is negative; in the frames "
            "the green line is the fault-free angle, the red one the faulty angle, and beyond "
            f"{_STEEPEST:g} degrees either is drawn at {_STEEPEST:g}."
        )
    yield from campaigns.sources("pictures")


Example = tuple[Tensor, str, int, str, str, str]


def _found(results: Results, network: Network, classes: Sequence[str]) -> list[Example]:
    """The first failures on different inputs: picture, operator, bit, fault-free, faulty and true output."""
    failed = results.runs.filter(results.runs[results.criteria[0]].cast(str) == "sdc").unique("input", keep="first")
    table = results.faults
    bits = dict(zip(table.frame["fault"].to_list(), table.frame.with_columns(table.bits)["bit"].to_list(), strict=True))
    found: list[Example] = []
    for fault, row in failed.sort("fault").select("fault", "input").iter_rows():
        golden, faulty = _outputs(network, table, fault, row)
        said = [_words(network, value, classes) for value in (golden, faulty)]
        if said[0] != said[1]:
            true = "" if network.met.y is None else _named(int(network.met.y[row]), classes)
            site = str(table.frame.filter(table.frame["fault"] == fault)["site"][0])
            found.append((_pixels(network, row, golden, faulty), site, bits[fault], *said, true))
        if len(found) == _PICTURES:
            break
    return found


def _outputs(network: Network, table: FaultTable, fault: int, row: int) -> tuple[Tensor, Tensor]:
    """Output of one input without and with a fault, by a pass of that input alone."""
    program = network.program
    (struck,) = table.frame.filter(table.frame["fault"] == fault).select("site", "element", "keep", "flip").iter_rows()
    site, element, keep, flip = struck
    step = program.site_steps[str(site)]
    form = FIXED32.format
    assert form is not None

    def hit(number: int, value: Tensor) -> Tensor:
        if number != step:
            return value
        changed = value.clone().contiguous()
        flat = changed.view(-1)
        flat[element] = form.apply(flat[element : element + 1], keep, flip)[0]
        return changed

    leaves = program.leaves(network.met, torch.tensor([row]))
    with torch.inference_mode():
        return program.run(leaves)[0][0], program.run(leaves, hook=hit)[0][0]


def _named(label: int, classes: Sequence[str]) -> str:
    return classes[label] if classes else str(label)


def _words(network: Network, output: Tensor, classes: Sequence[str]) -> str:
    if not network.is_classifier:
        return f"{float(network.degrees(output[None])[0]):.1f}"
    return _named(int(output.argmax()), classes)


def _pixels(network: Network, row: int, golden: Tensor, faulty: Tensor) -> Tensor:
    """One input as a picture: uint8, shape ``(height, width, 3)``."""
    x = network.met.tensors[0][row]
    mean, std = _MEANS.get(network.listing.data, ((0.0,) * 3, (1.0,) * 3))
    x = x * torch.tensor(std).view(-1, 1, 1)[: len(x)] + torch.tensor(mean).view(-1, 1, 1)[: len(x)]
    pixels = (x.expand(3, -1, -1) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    scale = max(1, _HEIGHT // pixels.shape[0])
    large = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    if not network.is_classifier:
        for output, colour in ((golden, (40, 220, 60)), (faulty, (230, 40, 40))):
            _line(large, float(network.degrees(output[None])[0]), colour)
    return large


def _line(pixels: Tensor, degrees: float, colour: tuple[int, int, int]) -> None:
    """Draw a line from the middle of the lower edge, upwards and to the side of an angle, as steep as is drawn."""
    height, width, _ = pixels.shape
    angle = math.radians(max(-_STEEPEST, min(_STEEPEST, degrees)))
    for distance in range(int(height * 0.8)):
        row = height - 1 - int(distance * math.cos(angle))
        column = width // 2 + int(distance * math.sin(angle))
        if 0 <= row < height and 1 <= column < width - 1:
            pixels[row, column - 1 : column + 2] = torch.tensor(colour, dtype=torch.uint8)


def _captioned(pixels: Tensor, golden: str, faulty: str) -> Tensor:
    """A picture above what the network said of it, and what it says with the fault, in green and red."""
    from PIL import Image, ImageDraw, ImageFont

    height = pixels.shape[0]
    large = F.pad(pixels.permute(2, 0, 1), (0, 0, 0, 2 * _LINE + 2), value=255).permute(1, 2, 0).contiguous()
    image = Image.fromarray(large.numpy())
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.text((4, height), golden, "#15803d", font)
    draw.text((4, height + _LINE), f"became {faulty}", "#b91c1c", font)
    return torch.from_numpy(np.array(image))


def _strip(network: Network, found: list[Example]) -> Figure:
    """Pictures side by side."""
    unit = "" if network.is_classifier else "°"
    captioned = [_captioned(entry[0], f"{entry[3]}{unit}", f"{entry[4]}{unit}") for entry in found]
    padded = [F.pad(one.permute(2, 0, 1), (0, _GAP), value=255).permute(1, 2, 0) for one in captioned]
    read = "; ".join(f"{golden} became {faulty}" for _, _, _, golden, faulty, _ in found)
    kind = "classes" if network.is_classifier else "degrees"
    label = network.listing.label
    return picture(
        network.listing.key,
        title=f"{label}, {kind}: {read}",
        alt=f"{len(found)} inputs of {label} that one fault made it misread",
        pixels=torch.cat(padded, 1).contiguous(),
    )
