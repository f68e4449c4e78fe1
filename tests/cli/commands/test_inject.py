"""``inject`` and ``replay`` from the outside: options, files, prediction, resumption, errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoplon import (
    TMR,
    BitFlip,
    Campaign,
    Deviation,
    HoplonError,
    Memory,
    Parity,
    RandomValue,
    StuckAt,
    TopK,
    Values,
    Zero,
    capture,
    importance,
    load_results,
)
from hoplon.cli.app import main
from hoplon.cli.options.campaign_file import Settings, merged, read_raw
from hoplon.cli.options.text import positions
from hoplon.comparison.learned import Learned
from hoplon.criteria import EmbeddingDistance, Several
from hoplon.faults import AdjacentBits, BitRate, Burst, Elements, Mixture
from hoplon.faults.sampling import LayerUniform, OpUniform, Stratified, TopScore
from hoplon.files import read_json
from hoplon.formats import FixedPoint
from hoplon.importance import Scores
from hoplon.program.inputs import Inputs
from tests.support.networks import small_data, small_net

PLACE = {"model": "m", "data": "d"}
LEARNED = Learned(capture(small_net(), small_data()[0].x[:4]), small_data()[1])


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints as JSON."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that has to refuse its input."""
    assert main(list(arguments)) in (2, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


def test_a_campaign_of_options_is_the_campaign_in_python(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    options = (
        "--target memory --sites *.weight --kind linear --flips 2 --bits 23-30 --criterion top-1 --criterion top-2"
    )
    found = ran(
        capsys, "inject", *small_files, *options.split(), "--count", "70", "--seed", "3", "--inputs", "9",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    held_out, _ = small_data()
    data = Inputs(held_out.x, held_out.y, name="data.npz").sample(9, seed=3)
    campaign = Campaign(
        capture(small_net(), small_data()[0].x[:4]),
        data,
        sites=Memory("*.weight", kind="linear"),
        fault_model=BitFlip(2, bits=tuple(range(23, 31))),
        criterion=[TopK(1), TopK(2)],
    )
    results = campaign.run(count=70, seed=3)
    assert found["digest"] == results.digest() == load_results(tmp_path / "run").digest()
    assert [row["criterion"] for row in found["summary"]] == ["top-1", "top-2"]
    assert found["summary"][0]["failure"] == results.summary()[0].failure.estimate
    assert found["by_layer"]["top-1"][0]["layer"] == "3.weight"
    assert found["critical_share"]["top-1"][0]["threshold"] == 0
    assert read_json(tmp_path / "run" / "results.json") == found


def test_packed_kernels_are_recorded_and_printed(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    options = [*small_files, "--count", "40", "--kernels", "packed"]
    found = ran(capsys, "inject", *options, "--out", str(tmp_path / "run"))
    said = found["manifest"]["kernels"]
    assert said["form"] == "packed"
    assert said["difference"] <= said["tolerance"]
    assert main(["inject", *options, "--out", str(tmp_path / "again")]) == 0
    assert f"Packed kernels: on {said['samples']} samples outputs within" in capsys.readouterr().out


def test_tables_say_what_and_how_sure(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    assert main(["inject", *small_files, "--target", "memory", "--count", "40", "--out", out]) == 0
    captured = capsys.readouterr()
    for text in (
        "Memory faults: 40 faults, 15 inputs, 600 runs; wilson, clustered 95 %",
        "By layer",
        "By bit",
        "Critical",
    ):
        assert text in captured.out
    assert "faults: 40 to do" in captured.err
    assert f"the run in {out}" in captured.err


def test_a_run_goes_on_without_being_told_what_it_was(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = [*small_files, "--count", "2500", "--fault", "stuck-at", "--stuck-value", "1"]
    whole = ran(capsys, "inject", *options, "--out", str(tmp_path / "whole"))
    out = str(tmp_path / "run")
    write = hoplon_write()

    def interrupted(directory: Any, unit: int, *shards: Any) -> None:
        if unit == 1:
            raise KeyboardInterrupt
        write(directory, unit, *shards)

    with monkeypatch.context() as patch:
        patch.setattr("hoplon.campaign.store.RunDirectory.write", interrupted)
        assert main(["inject", *options, "--out", out]) == 130
    again = f"Resume with `hoplon inject {' '.join(small_files)} --resume --out {out}`"
    assert f"Saved: 1 finished units in {out}. {again}" in capsys.readouterr().err
    assert "--resume it or choose another --out" in refused(capsys, "inject", *options, "--out", out)
    assert "seed: 0 there, 1 here" in refused(capsys, "inject", *small_files, "--resume", "--out", out, "--seed", "1")
    resumed = ["inject", *small_files, "--resume", "--out", out]
    assert ran(capsys, *resumed)["digest"] == whole["digest"]
    assert ran(capsys, *resumed, "--workers", "1")["digest"] == whole["digest"]


def hoplon_write() -> Any:
    from hoplon.campaign.store import RunDirectory

    return RunDirectory.write


def test_a_prediction_writes_nothing(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    found = ran(capsys, "inject", *small_files, "--target", "memory", "--count", "5000", "--dry-run", "--out", str(out))
    assert (found["faults"], found["runs"]) == (5000, 5000 * 15)
    assert found["seconds"] > 0
    assert found["pilot"]["execution"]["replay"] == "by row"
    assert main(["inject", *small_files, "--half-width", "0.01", "--dry-run", "--workers", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "at most about" in printed
    assert "on 2 workers" in printed
    said = "runs go by region, batches of 20, exact kernels, fault-free values of 1 of 1 batches at once (2 maps of"
    assert said in " ".join(printed.split())
    assert "if 10 % of the faults fail:" in printed
    partly = ["--target", "memory", "--half-width", "0.1", "--batch", "4", "--dry-run", "--out", str(out)]
    assert main(["inject", *small_files, *partly]) == 0
    assert "as the pilot suggests, each fault meets 1 of 4 input batches" in " ".join(capsys.readouterr().out.split())
    assert not out.exists()


def test_a_file_holds_a_whole_campaign_and_options_override_it(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "campaign.toml"
    file.write_text(
        f"""
        model = {json.dumps(small_files[0])}
        data = {json.dumps(small_files[1])}
        kind = ["conv", "linear"]
        criterion = ["top-1", {{ name = "deviation", thresholds = [1, 10.0], unit = "V" }}]
        count = 60
        out = {json.dumps(str(tmp_path / "file"))}

        [fault]
        name = "bitflip"
        field = "exponent"

        [sampling]
        name = "op"
        drop_last = 1
        """
    )
    found = ran(capsys, "inject", "--config", str(file))
    assert [row["criterion"] for row in found["summary"]] == ["top-1", "deviation>1V", "deviation>10V"]
    assert [row["layer"] for row in found["by_layer"]["top-1"]] == ["0:conv"]
    assert {row["bit"] for row in found["by_bit"]["top-1"]} <= set(range(23, 31))
    over = ["--bits", "30", "--count", "8", "--sampling", "element", "--criterion", "top-1", "--fault", "bitflip"]
    found = ran(capsys, "inject", "--config", str(file), *over, "--out", str(tmp_path / "options"))
    assert found["manifest"]["count"] == 8
    assert [row["bit"] for row in found["by_bit"]["top-1"]] == [30]
    assert found["manifest"]["sampling"] == "ElementUniform()"
    assert {row["criterion"] for row in found["summary"]} == {"top-1"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("zero", Zero()),
        ({"name": "bitflip", "count": 2, "bits": [30, 31]}, BitFlip(2, bits=(30, 31))),
        ({"name": "bitflip", "bits": 30}, BitFlip(bits=(30,))),
        ({"name": "bitflip", "format": "fixed(21,10)"}, BitFlip(format=FixedPoint(21, 10))),
        ({"name": "stuck-at", "value": 1, "field": "sign"}, StuckAt(1, field="sign")),
        ({"name": "adjacent-bits", "count": 3}, AdjacentBits(3)),
        ({"name": "random-value", "low": -1, "high": 1.5}, RandomValue(-1.0, 1.5)),
        ({"name": "bit-rate", "rate": 1e-6}, BitRate(1e-6)),
        ({"name": "bitflip", "elements": 2}, Elements(2, BitFlip())),
        ({"name": "random-value", "bytes": 64}, Burst(RandomValue(), bytes=64)),
        ({"name": "bitflip", "words": 4, "lane": True}, Burst(BitFlip(), words=4, lane=True)),
        (["zero", {"name": "bitflip", "weight": 3}], Mixture((Zero(), BitFlip()), (1.0, 3.0))),
    ],
)
def test_fault_models(given: Any, wanted: Any) -> None:
    assert Settings.read({**PLACE, "fault": given}).fault == wanted


def sampling(given: Any) -> Any:
    return Settings.read({**PLACE, "sampling": given}).sampling(LEARNED)


def test_samplings(tmp_path: Path) -> None:
    for given, wanted in (
        ("layer", LayerUniform()),
        ({"name": "op", "kinds": "conv", "drop_last": 1}, OpUniform(("conv",), 1)),
        (
            {"name": "stratified", "by": "bit", "allocation": {"30": 0.9, "31": 1}},
            Stratified("bit", {30: 0.9, 31: 1.0}),
        ),
    ):
        assert sampling(given) == wanted
    places = [["fc:linear", 3], ["fc:linear", 4, [30, 31]]]
    explicit = sampling({"name": "explicit", "faults": places})
    assert explicit.faults == (("fc:linear", 3, None), ("fc:linear", 4, (30, 31)))  # type: ignore[attr-defined]
    _, calibration = small_data()
    import torch.nn.functional as F

    scores = importance.taylor(capture(small_net(), calibration.x[:4]), calibration, loss=F.cross_entropy)
    scores.save(tmp_path / "scores.safetensors")
    given = {"name": "top-score", "scores": str(tmp_path / "scores.safetensors"), "fraction": 0.1}
    assert repr(sampling(given)) == repr(TopScore(scores.values, fraction=0.1))
    assert isinstance(scores, Scores)


def test_criteria_and_selections() -> None:
    def criterion(given: Any) -> Any:
        return Settings.read({**PLACE, "criterion": given}).criterion

    assert criterion("top-5-label") == TopK(5, reference="label")
    assert criterion({"name": "top-k", "k": 2, "outputs": 1}) == TopK(2, outputs=1)
    assert criterion(["top-1", "steering"]) == Several((TopK(), Deviation.steering()))
    chosen = Settings.read({**PLACE, "sites": "layer1.*", "kind": ["conv", "linear"]})
    assert chosen.selection() == Values(("layer1.*",), kind=("conv", "linear"))
    chosen = Settings.read({**PLACE, "target": "memory", "buffers": False, "protection": "tmr"})
    assert chosen.selection() == Memory(("*",), buffers=False)
    assert chosen.protection[0](LEARNED).label == "tmr"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"cuont": 3}, r"^f.toml: cuont: no option matches 'cuont'; near names: count"),
        ({"count": "many"}, "^f.toml: count: expected an integer of at least 1, got 'many'$"),
        ({"count": True}, "count: expected an integer of at least 1, got True"),
        ({"seed": -1}, "seed: expected an integer of at least 0 and below 9223372036854775808, got -1"),
        ({"target": "wires"}, "target: expected 'values' or 'memory', got 'wires'"),
        ({"sites": []}, r"sites: expected a text or a list of such, got \[\]"),
        ({"dtype": "int7"}, "dtype: expected the name of a dtype, such as 'int8', got 'int7'"),
        ({"buffers": True}, "buffers: expected target 'memory' beside it, got 'values'"),
        (
            {"fault": "bitflop"},
            "fault: no fault matches 'bitflop'; near names: bitflip .*choose one of adjacent-bits, bit-rate",
        ),
        (
            {"fault": {"count": 2}},
            "fault: expected a name or a table with a name out of adjacent-bits, bit-rate",
        ),
        ({"fault": {"name": "zero", "bits": 3}}, "fault.bits: no option matches 'bits'"),
        (
            {"fault": {"name": "bitflip", "bits": "3"}},
            "fault.bits: expected an integer of at least 0 or a list of such, got '3'",
        ),
        ({"fault": {"name": "bitflip", "count": 0}}, "fault.count: expected an integer of at least 1, got 0"),
        (
            {"fault": {"name": "bitflip", "format": "int9"}},
            "fault.format: expected the name of a number format .*'int9'",
        ),
        ({"fault": {"name": "stuck-at"}}, "fault.value: expected 0 or 1, got nothing; give it"),
        ({"fault": {"name": "zero", "elements": 2, "words": 3}}, "fault: expected elements, or words or bytes"),
        ({"fault": {"name": "zero", "lane": True}}, "fault: expected words or bytes beside lane, got neither"),
        ({"fault": ["zero", {"name": "zero", "weight": "x"}]}, r"fault\[1\].weight: expected a number, got 'x'"),
        ({"fault": [{"name": "zero", "weight": -1}]}, "fault: expected a positive weight"),
        (
            {"sampling": {"name": "op", "drop_last": 1.5}},
            "sampling.drop_last: expected an integer of at least 0, got 1.5",
        ),
        ({"sampling": {"name": "explicit", "faults": [["a"]]}}, "sampling.faults: expected a list of .site, element."),
        (
            {"sampling": {"name": "stratified", "by": "day"}},
            "sampling.by: expected 'site' or 'layer' or 'bit', got 'day'",
        ),
        ({"criterion": "best"}, "criterion: no criterion matches 'best'"),
        ({"criterion": ["top-1", {"name": "deviation"}]}, r"criterion\[1\].thresholds: expected a number or a list"),
        ({"criterion": ["top-1", "top-1"]}, "criterion: expected criteria whose columns have different names"),
        ({"protection": {"name": "ranger", "ranges": "none.json"}}, "protection"),
        ({"half_width": "1 %"}, "half_width: expected a number above 0 and below 1, got '1 %'"),
    ],
)
def test_errors_name_the_key(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        Settings.read({**PLACE, **raw}, source="f.toml")


def test_a_missing_model_or_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "data: expected a text, got nothing; give MODEL and DATA, or --config" in refused(capsys, "inject", "lenet")
    assert "expected a campaign file in TOML at" in refused(capsys, "inject", "--config", str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("model = ")
    assert "got Invalid value" in refused(capsys, "inject", "--config", str(tmp_path / "bad.toml"))
    assert "fault.bits: expected an integer of at least 0 or a list of such, got 'high'" in refused(
        capsys, "inject", "a", "b", "--bits", "high"
    )
    assert positions("0, 23-25") == [0, 23, 24, 25]


def test_options_go_over_a_file() -> None:
    raw = {"fault": {"name": "stuck-at", "value": 1}, "half_width": 0.1, "sampling": "op"}
    found = merged(raw, {"count": "5", "half_width": None, "stuck_value": "0", "drop_last": "2"})
    assert found == {"fault": {"name": "stuck-at", "value": 0}, "count": 5, "sampling": {"name": "op", "drop_last": 2}}
    assert merged(raw, {"fault": "zero"}) == {**raw, "fault": "zero"}
    assert merged({}, {"bits": ["3", "5-6"]}) == {"fault": {"name": "bitflip", "bits": [3, 5, 6]}}
    assert merged({}, {"fault": "bitflip:2", "field": "sign"})["fault"] == {
        "name": "bitflip",
        "count": 2,
        "field": "sign",
    }
    with pytest.raises(HoplonError, match="fault: expected one table to override options of, got a list"):
        merged({"fault": ["zero"]}, {"bits": ["3"]})


def test_everything_that_is_wrong_is_named_at_once() -> None:
    raw = {
        "data": "d",
        "cuont": 3,
        "seed": -1,
        "fault": {"name": "bitflip", "count": "two", "fiedl": "sign"},
        "criterion": ["top-1", {"name": "deviation", "unit": 3}, "worst"],
        "protection": ["parity:x", {"name": "ranger", "ranges": "none.json", "policy": "clam"}],
    }
    with pytest.raises(HoplonError) as caught:
        Settings.read(raw, source="f.toml")
    first, *lines = str(caught.value).splitlines()
    assert first == "f.toml: 11 values are wrong:"
    assert [line.strip().partition(":")[0] for line in lines] == [
        "cuont", "model", "seed", "fault.fiedl", "fault.count", "criterion[1].thresholds", "criterion[1].unit",
        "criterion[2]", "protection[0].group", "protection[1].ranges", "protection[1].policy",
    ]  # fmt: skip
    assert lines[-1].startswith("  protection[1].policy: no policy matches 'clam'; near names: clamp")


def test_short_texts_stand_for_a_name_and_its_first_option() -> None:
    settings = Settings.read({**PLACE, "protection": ["parity:16", "tmr:tensor"], "criterion": "embedding:0.5"})
    assert tuple(part(LEARNED) for part in settings.protection) == (Parity(16), TMR("tensor"))
    assert settings.criterion == EmbeddingDistance(0.5)


def test_replay_tells_two_models_apart(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    run, model = tmp_path / "run", small_files[0]
    options = ["--count", "90", "--inputs", "7", "--seed", "2", "--bits", "30", "--criterion", "top-2"]
    stored = ran(capsys, "inject", *small_files, *options, "--out", str(run))
    assert read_raw(run / "settings.json")["inputs"] == 7
    same = ran(capsys, "replay", str(run), "--model", model, "--out", str(tmp_path / "again"))
    assert same["digest"] == stored["digest"]
    assert same["criteria"]["top-2"]["difference"] == 0
    assert load_results(tmp_path / "again").digest() == stored["digest"]
    (tmp_path / "other.py").write_text(
        "import torch\nfrom tests.support.networks import small_net\n\n\ndef net():\n    net = small_net()\n"
        "    net[3].weight.data *= 0.9\n    return net, torch.zeros(4, 1, 6, 6)\n"
    )
    other = f"{tmp_path / 'other.py'}:net"
    assert main(["replay", str(run), "--model", other]) == 0
    captured = capsys.readouterr()
    assert "(other)" in captured.out
    assert "on the same 90 faults (90 runs)" in " ".join(captured.out.split())
    assert "McNemar p =" in captured.out
    assert "Saved" not in captured.err
    assert ran(capsys, "replay", str(run), "--model", other)["original"]["name"] == model
    np.savez(tmp_path / "few.npz", x=np.zeros((9, 1, 6, 6), np.float32), y=np.zeros(9, np.int64))
    line = refused(capsys, "replay", str(run), "--model", other, "--data", str(tmp_path / "few.npz"))
    assert "value faults are tied to their inputs" in line
    assert "expected a run directory" in refused(capsys, "replay", str(tmp_path), "--model", other)


def test_a_criterion_without_its_number_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(
        capsys, "inject", "lenet-digits", "digits", "--criterion", "perplexity", "--out", str(tmp_path / "run")
    )
    assert "criterion.factor: expected a number, got nothing; give it" in said


@pytest.mark.parametrize(
    ("name", "text"), [("settings.json", '{"editor.fontSize": 12}'), ("results.json", "[1]"), ("runs", "5 km")]
)
def test_files_of_the_users_are_not_overwritten(
    name: str, text: str, capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    assert main(["inject", *small_files, "--count", "40", "--out", str(out)]) == 4
    said = capsys.readouterr().err
    assert said.startswith(f"hoplon: expected a new run directory, got {out} with ")
    assert name in said
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [(name, text)]
