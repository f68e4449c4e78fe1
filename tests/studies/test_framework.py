from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import random
import re
import sys
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

import hoplon as hp
from hoplon.errors import HoplonError, SiteError, StoreError
from hoplon.files import json_as, read_json, sealed
from hoplon.stats.intervals import wilson
from hoplon.zoo import ZooData, ZooModel
from hoplon_studies import Context, Findings, Part, Row, Source, Study, Table, profile_named, run_study, write_pages
from hoplon_studies.framework.figures import Figure, Series, against, bars, heatmap, lines, picture
from hoplon_studies.framework.folder import StudyFolder
from hoplon_studies.framework.page import as_document
from hoplon_studies.framework.rows import KEYS
from hoplon_studies.framework.study import Published
from tests.support.failing_calls import counted, full

QUICK = profile_named("quick")
ROW = Row("Fig. 6", "net", "data", "random weights: critical share", "%", paper=5.3)


class Counter:
    """Parts that count how often they run; the third fails until it is told not to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken = True

    def study(self, name: str = "aspis") -> Study:
        parts = (Part("one", "First", self.one), Part("two", "Second", self.two), Part("three", "Third", self.three))
        return Study(name, "A study", ("Of nothing.",), parts)

    def one(self, context: Context) -> Findings:
        self.calls.append("one")
        figure = bars("shares", title="t", alt="a", groups=["x"], series=[Series("s", (1.0,))], y_title="%")
        row = ROW.found(wilson(3, 10), n=10, seed=context.seed)
        return Findings(rows=(row,), figures=(figure,), text=("Words.",), sources=(Source("it", "none"),))

    def two(self, context: Context) -> Findings:
        self.calls.append("two")
        seconds = context.kept("seconds", lambda: len(self.calls) / 7)
        table = Table("points", ("x", "y"), ((1, 0.5), ("a|b", None)))
        row = dataclasses.replace(ROW, here=seconds, unit="s", where="Fig. 17", paper="2 to 4")
        return Findings(rows=(row, ROW.missing("no weights here")), tables=(table,))

    def three(self, context: Context) -> Findings:
        context.kept("before", lambda: len(self.calls))
        self.calls.append("three")
        if self.broken:
            raise HoplonError("stopped")
        return Findings(text=(f"begun at call {context.kept('before', lambda: -1)}",))


def pages(out: Path) -> dict[str, bytes]:
    files = [*out.glob("*.md"), *out.glob("*.json"), *out.glob("aspis/*")]
    return {file.name: file.read_bytes() for file in files}


def test_a_resumed_study_skips_finished_parts_and_gives_the_same_page(tmp_path: Path) -> None:
    counter = Counter()
    with pytest.raises(HoplonError, match="stopped"):
        run_study(counter.study(), out=tmp_path, profile=QUICK, command=["hoplon", "study", "aspis"])
    counter.broken = False
    write_pages(tmp_path, run_study(counter.study(), out=tmp_path, profile=QUICK, command=["another"]))
    first = pages(tmp_path)
    assert counter.calls == ["one", "two", "three", "three"]
    assert b"begun at call 2" in first["aspis.md"]
    write_pages(tmp_path, run_study(counter.study(), out=tmp_path, profile=QUICK))
    assert counter.calls == ["one", "two", "three", "three"]
    assert pages(tmp_path) == first
    assert set(first) == {"aspis.md", "aspis.json", "one-shares.svg", "paper-against-here.svg"}
    assert json.loads(first["aspis.json"])["command"] == "hoplon study aspis"


def test_an_interrupted_page_says_what_has_not_run(tmp_path: Path) -> None:
    counter = Counter()
    result = run_study(counter.study(), out=tmp_path, profile=QUICK, only=["two"])
    assert (counter.calls, result.unfinished) == (["two"], ("one", "three"))
    assert as_document(result)["unfinished"] == ["one", "three"]
    write_pages(tmp_path, result)
    assert "**Not run yet:** one, three." in (tmp_path / "aspis.md").read_text()


def test_a_part_is_run_again_when_asked_for(tmp_path: Path) -> None:
    counter = Counter()
    before = run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one", "two"])
    after = run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one", "two"], again=["two"])
    assert counter.calls == ["one", "two", "two"]
    assert before.findings["two"].rows[0].here == pytest.approx(2 / 7)
    assert after.findings["two"].rows[0].here == pytest.approx(3 / 7)  # what was kept is forgotten too
    assert after.findings["one"] == before.findings["one"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"profile": profile_named("paper")}, r"profile: \"quick\" there, \"paper\" here"),
        ({"seed": 3}, r"seed: 0 there, 3 here"),
    ],
)
def test_a_folder_of_another_study_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    counter = Counter()
    run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one"])
    with pytest.raises(StoreError, match=message):
        run_study(counter.study(), **{"out": tmp_path, "profile": QUICK, **other})
    assert counter.calls == ["one"]


def test_another_model_of_the_users_is_refused(tmp_path: Path) -> None:
    def own(weight: float) -> tuple[ZooModel, ZooData]:
        module = torch.nn.Linear(2, 2).eval()
        torch.nn.init.constant_(module.weight, weight)
        data = ZooData("points", hp.Inputs(torch.zeros(2, 2)), hp.Inputs(torch.zeros(2, 2)))
        return ZooModel("mine", module, torch.zeros(2, 2)), data

    torch.manual_seed(0)
    first = own(1.0)
    counter = Counter()
    run_study(counter.study(), out=tmp_path, profile=QUICK, own=first, only=["one"])
    run_study(counter.study(), out=tmp_path, profile=QUICK, own=first, only=["one"])
    with pytest.raises(StoreError, match="weights: .* there, .* here"):
        run_study(counter.study(), out=tmp_path, profile=QUICK, own=own(2.0), only=["one"])
    with pytest.raises(StoreError, match='model: "mine" there, null here'):
        run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one"])


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study-runs" / "aspis").mkdir(parents=True)
    (tmp_path / "study-runs" / "aspis" / "letters.txt").write_text("dear")
    with pytest.raises(StoreError, match="expected a study or nothing in .*, got other files"):
        run_study(Counter().study(), out=tmp_path, profile=QUICK)
    (tmp_path / "study-runs" / "aspis" / "study.json").write_text("[]")
    with pytest.raises(StoreError, match=r"expected .*study.json as a study writes it, got document: Input should be"):
        run_study(Counter().study(), out=tmp_path, profile=QUICK)


def test_damaged_findings_are_refused(tmp_path: Path) -> None:
    run_study(Counter().study(), out=tmp_path, profile=QUICK, only=["one"])
    file = tmp_path / "study-runs" / "aspis" / "parts" / "one.json"
    found = read_json(file)
    for damaged, what in [
        (file.read_text().replace("Words", "Wards"), "its seal is another"),
        (sealed({**found, "rows": [{**found["rows"][0], "were": "Fig. 6"}]}), "rows.0.were: Unexpected keyword"),
        (sealed({**found, "rows": [{**found["rows"][0], "low": 99}]}), "rows.0: .*expected limits around the value"),
        (sealed({**found, "figures": [{**found["figures"][0], "content": "?"}]}), "figures.0.content: .*base64"),
        (sealed({**found, "text": 3}), "text: Input should be a valid tuple"),
        ("{", "Expecting"),
    ]:
        file.write_text(damaged)
        with pytest.raises(StoreError, match=f"got (content .*)?{what}.*; delete it and run the study again") as caught:
            run_study(Counter().study(), out=tmp_path, profile=QUICK, only=["one"])
        assert "\n" not in str(caught.value)


def test_no_flipped_bit_in_the_records_of_a_study_goes_unnoticed(tmp_path: Path) -> None:
    counter, dice = Counter(), random.Random(16)
    before = run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one", "two"])
    kept = tmp_path / "study-runs" / "aspis" / "runs" / "two" / "seconds.json"
    files = [file for file in tmp_path.rglob("*.json") if file != kept]
    assert len(files) == 3
    for file in files * 100:
        whole = file.read_bytes()
        content = bytearray(whole)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
        with suppress(StoreError):
            after = run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one", "two"])
            assert (after.findings, after.manifest) == (before.findings, before.manifest), file
        file.write_bytes(whole)
    assert counter.calls == ["one", "two"]
    kept.write_text(kept.read_text().replace("0.28", "0.38"))
    (tmp_path / "study-runs" / "aspis" / "parts" / "two.json").unlink()
    with pytest.raises(
        StoreError, match=r"expected .*seconds.json as a study writes it, got .* its seal is another.*; "
    ):
        run_study(counter.study(), out=tmp_path, profile=QUICK, only=["two"])


def test_values_that_early_versions_kept_bare_are_read(tmp_path: Path) -> None:
    counter = Counter()
    kept = tmp_path / "study-runs" / "aspis" / "runs" / "two" / "seconds.json"
    run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one"])
    kept.parent.mkdir(parents=True)
    kept.write_text("7.5\n")
    found = run_study(counter.study(), out=tmp_path, profile=QUICK, only=["two"])
    assert found.findings["two"].rows[0].here == 7.5
    run_study(counter.study(), out=tmp_path, profile=QUICK, only=["two"], again=["two"])
    assert kept.with_name("seconds.json.before").read_text() == "7.5\n"


def test_a_study_removes_only_what_it_wrote(tmp_path: Path) -> None:
    counter = Counter()
    write_pages(tmp_path, run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one", "two"]))
    own = tmp_path / "aspis" / "one-shares.svg"
    theirs = [tmp_path / "aspis" / "drawing.svg", tmp_path / "study-runs" / "aspis" / "runs" / "two" / "notes.txt"]
    for file in theirs:
        file.write_text("mine")
    notes = theirs[1].with_suffix(".json")
    notes.write_text('{"mine": 1}')
    counter.one = lambda context: Findings(text=("No figure.",))  # type: ignore[method-assign]
    write_pages(tmp_path, run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one"], again=["one", "two"]))
    assert not own.exists()
    assert all(file.read_text() == "mine" for file in theirs)
    assert notes.with_name("notes.json.before").read_text() == '{"mine": 1}'


def test_a_study_whose_writes_fail_at_any_call_is_gone_on_with(tmp_path: Path) -> None:
    at, whole, only = 0, tmp_path / "whole", "two"
    write_pages(whole, run_study(Counter().study(), out=whole, profile=QUICK, only=[only]))
    while True:
        at += 1
        out = tmp_path / str(at)
        with counted(at, full) as count, suppress(StoreError):
            write_pages(out, run_study(Counter().study(), out=out, profile=QUICK, only=[only]))
        if count[0] < at:
            break
        write_pages(out, run_study(Counter().study(), out=out, profile=QUICK, only=[only]))
        assert pages(out) == pages(whole)
        assert not [inside for hidden in out.rglob(".*") for inside in hidden.iterdir()]
    assert at > 20


def test_unknown_parts_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no part of study aspis matches 'oen'; near names: one"):
        run_study(Counter().study(), out=tmp_path, profile=QUICK, only=["oen"])
    assert list(tmp_path.iterdir()) == []


def test_parts_of_one_name_and_names_that_are_no_file_names_are_refused() -> None:
    part = Part("one", "First", lambda context: Findings())
    with pytest.raises(HoplonError, match="expected parts of different names"):
        Study("x", "t", (), (part, part))
    with pytest.raises(HoplonError, match="expected the name of a part of a-z"):
        Part("../one", "First", lambda context: Findings())


def test_rows_have_the_keys_of_the_page(tmp_path: Path) -> None:
    counter = Counter()
    result = run_study(counter.study(), out=tmp_path, profile=QUICK, only=["one", "two"])
    rows = as_document(result)["rows"]
    assert all(tuple(row) == KEYS for row in rows)
    assert rows[0]["here"] == pytest.approx(30)
    assert rows[0]["low"] < 30 < rows[0]["high"]
    assert {key: rows[2][key] for key in ("here", "low", "high", "n", "seed")} == dict.fromkeys(
        ("here", "low", "high", "n", "seed")
    )
    assert rows[2]["note"] == "random weights: critical share, %; no weights here"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"what": ""}, "expected a row with where"),
        ({"paper": float("nan")}, "expected a finite paper"),
        ({"here": 1.0, "low": 2.0, "high": 3.0}, "expected limits around the value"),
    ],
)
def test_rows_that_say_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        dataclasses.replace(ROW, **change)


def test_a_row_without_a_figure_says_why() -> None:
    with pytest.raises(HoplonError, match="expected a reason why Fig. 6"):
        ROW.missing("")


def test_findings_survive_a_file() -> None:
    figure = picture("frame", title="t", alt="a", pixels=torch.zeros(2, 3, 3, dtype=torch.uint8))
    part = Counter().study().part("two").run(_Kept())  # type: ignore[arg-type]
    findings = Findings.of([*part, figure, Source("w", "f", 3, ("runs/a",), "c"), "p"])
    assert json_as(Findings, sealed(findings.stored())) == findings


def test_single_findings_are_kept_by_kind_in_their_order() -> None:
    table, source = Table("t", ("a",), ((1,),)), Source("w", "none")
    findings = Findings.of(["one", ROW, source, table, "two"])
    assert findings == Findings(rows=(ROW,), tables=(table,), text=("one", "two"), sources=(source,))
    assert Findings.of(findings) == findings


class _Kept:
    def kept(self, name: str, make: Any) -> Any:
        return make()


def test_a_table_has_cells_for_its_columns() -> None:
    with pytest.raises(HoplonError, match="expected 2 cells"):
        Table("t", ("a", "b"), ((1,),))


def test_published_values_say_where_they_are_printed() -> None:
    published = Published("aspis")
    assert len(published) > 40
    document = json.loads((files("hoplon_studies") / "published" / "aspis.json").read_text(encoding="utf-8"))
    assert {entry["key"]: entry["value"] for entry in document["values"]} == published
    assert all(entry["place"] and entry["value"] is not None for entry in document["values"])
    with pytest.raises(SiteError, match="no published value of aspis matches 'fig99'"):
        published["fig99"]


SVG = "{http://www.w3.org/2000/svg}"


def boxes(figure: Figure, colour: str) -> list[tuple[float, float]]:
    """Upper and lower edge of every shape of a colour in an SVG, in its order."""
    paths = ElementTree.fromstring(figure.content).iter(f"{SVG}path")
    corners = [re.findall(r"[ML] (\S+) (\S+)", mark.attrib["d"]) for mark in paths if colour in mark.get("style", "")]
    return [(min(float(y) for _, y in box), max(float(y) for _, y in box)) for box in corners]


def test_bars_stand_as_high_as_their_values() -> None:
    series = [Series("a", (10.0, None), (5.0, None), (15.0, None)), Series("b", (20.0, 0.0))]
    options: dict[str, Any] = {"title": "t", "alt": "a", "groups": ["one", "<two>"], "series": series, "y_title": "%"}
    figure = bars("b", **options)
    (ten, _legend), (twenty, zero, _) = boxes(figure, "fill: #2a78b5"), boxes(figure, "fill: #d1603d")
    assert twenty[1] - twenty[0] == pytest.approx(2 * (ten[1] - ten[0]), rel=1e-4)
    assert twenty[1] == ten[1] == zero[0] == zero[1]
    assert "<two>" in "".join(ElementTree.fromstring(figure.content).itertext())
    assert figure == bars("b", **options)  # byte for byte


def test_a_logarithmic_axis_holds_whole_decades_and_zero_stands_at_its_lower_end() -> None:
    series = [Series("s", (0.05, 3.0, 0.0))]
    figure = bars("b", title="t", alt="a", groups=["x", "y", "z"], series=series, y_title="%", log_y=True)
    small, large, zero = boxes(figure, "fill: #2a78b5")
    decade = (large[1] - large[0]) / math.log10(3 / 0.01)
    assert small[1] - small[0] == pytest.approx(decade * math.log10(0.05 / 0.01), rel=1e-3)
    assert zero[1] - zero[0] == pytest.approx(0, abs=1e-6)


def test_lines_and_maps_are_whole_documents() -> None:
    series = [Series("s", (0.0, None, 5.0), (0.0, None, 4.0), (1.0, None, 6.0))]
    line = lines("l", title="t", alt="a", x=[1, 3, 10], series=series, x_title="x", y_title="y", log_x=True)
    map_ = heatmap("h", title="t", alt="a", columns=[[0.0, 1.0], [0.5]], x_labels=["a", "b"], y_title="y")
    assert ElementTree.fromstring(line.content).tag == f"{SVG}svg"
    data = re.findall(r"data:image/png;base64,([^\"]+)", map_.content.decode())
    images = [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in data]
    colours = [image.getpixel((0, y)) for image in images for y in range(image.height)]
    assert colours == [(0xDB, 0xEA, 0xFE), (0xDC, 0x26, 0x26), pytest.approx((0xFD, 0xE6, 0x8A), abs=2)]


def test_a_map_has_a_scale_and_groups_have_a_title_where_they_are_given() -> None:
    cells: dict[str, Any] = {"columns": [[0.0]], "x_labels": ["a"], "y_title": "y"}
    map_ = heatmap("h", title="t", alt="a", ends=("lowest", "highest"), **cells).content.decode()
    assert ">lowest</text>" in map_
    assert ">highest</text>" in map_
    series = [Series("s", (1.0,))]
    titled = bars("b", title="t", alt="a", groups=["g"], series=series, y_title="y", x_title="images").content.decode()
    assert ">images</text>" in titled


def test_every_one_of_very_many_series_has_a_colour_of_its_own() -> None:
    series = [Series(f"s{number}", (1.0,)) for number in range(16)]
    figure = bars("b", title="t", alt="a", groups=["g"], series=series, y_title="y")
    styles = [mark.get("style", "") for mark in ElementTree.fromstring(figure.content).iter(f"{SVG}path")]
    fills = [style for style in styles if style.startswith("fill: #") and "#ffffff" not in style]
    assert len(fills) == 32  # a bar and its mark in the legend
    assert len(set(fills)) == 16


def test_published_figures_stand_against_those_found_and_stand_ins_are_hollow() -> None:
    points = {
        "%": [(10.0, 10.0, 5.0, 20.0, False), (1.0, 0.0, 0.0, 0.1, True)],
        "MB": [(100.0, 50.0, 50.0, 50.0, False)],
    }
    figure = against("a", title="t", alt="a", points=points)
    marks = [mark.attrib for mark in ElementTree.fromstring(figure.content).iter(f"{SVG}use")]
    places = {
        style: [(float(mark["x"]), float(mark["y"])) for mark in marks if mark["style"].startswith(style)]
        for style in ("fill: #2a78b5", "fill: #ffffff", "fill: #d1603d")
    }
    (ten, *_), ((x, lowest), *_), (hundred, *_) = places.values()
    assert x < ten[0] < hundred[0]
    assert hundred[1] < ten[1] < lowest
    assert figure == against("a", title="t", alt="a", points=points)


def test_charts_of_nothing_are_refused() -> None:
    with pytest.raises(HoplonError, match="got no point"):
        against("a", title="t", alt="a", points={})
    with pytest.raises(HoplonError, match="expected something to draw"):
        bars("b", title="t", alt="a", groups=[], series=[Series("s", ())], y_title="y")
    with pytest.raises(HoplonError, match="expected 1 values in the series 's', got 2"):
        bars("b", title="t", alt="a", groups=["g"], series=[Series("s", (1.0, 2.0))], y_title="y")
    with pytest.raises(HoplonError, match="expected a figure name"):
        picture("A b", title="t", alt="a", pixels=torch.zeros(1, 1, 3, dtype=torch.uint8))
    with pytest.raises(HoplonError, match="expected uint8 pixels"):
        picture("a", title="t", alt="a", pixels=torch.zeros(1, 1, 3))


def test_a_picture_holds_its_pixels() -> None:
    pixels = torch.arange(2 * 3 * 3, dtype=torch.uint8).reshape(2, 3, 3)
    image = Image.open(io.BytesIO(picture("p", title="t", alt="a", pixels=pixels).content))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (3, 2))
    assert image.tobytes() == bytes(pixels.flatten().tolist())


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HoplonError, match=r"expected matplotlib to draw figures, .*; pip install 'hoplon\[studies\]'"):
        bars("b", title="t", alt="a", groups=["g"], series=[Series("s", (1.0,))], y_title="y")


def test_findings_of_another_study_are_not_taken(tmp_path: Path) -> None:
    folders = [StudyFolder(tmp_path / name) for name in ("one", "other")]
    for folder in folders:
        folder.begin({"name": folder.path.name}, {"begun": "today", "command": "hoplon study", "machine": {}})
        folder.keep("first", Findings(text=(folder.path.name,)))
    mine, others = (folder.path / "parts" / "first.json" for folder in folders)
    mine.write_bytes(others.read_bytes())
    with pytest.raises(StoreError, match=r"got another's in .*first.json; delete it"):
        folders[0].finished("first")
