"""Models in files, and models of other libraries by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hoplon as hp
from hoplon.errors import DataError, HoplonError
from hoplon.zoo import resolve_model
from hoplon.zoo.libraries import LIBRARIES, Detector, library_model, required
from hoplon.zoo.torchvision_ops import import_torchvision, non_maximum_suppression


class Net(nn.Module):
    """Two inputs, one of them optional."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return torch.relu(self.linear(x if mask is None else x * mask))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def test_a_program_of_torch_export_is_a_model(net: Net, tmp_path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    kwargs = {"mask": torch.ones(3, 6)}
    exported = torch.export.export(net, (torch.ones(3, 6),), kwargs, dynamic_shapes={"x": batch, "mask": batch})
    torch.export.save(exported, tmp_path / "net.pt2")
    model = resolve_model(str(tmp_path / "net.pt2"))
    program = hp.capture(model.module, model.example, name=model.name)
    assert [str(form) for form in program.signature.tensors] == ["(batch, 6)", "(batch, 6)"]
    x = torch.arange(12.0).view(2, 6)
    with torch.inference_mode():
        assert torch.equal(program(x, mask=x), net(x, mask=x))


def test_a_program_of_one_sample_stays_at_one(net: Net, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net, (torch.ones(1, 6),)), tmp_path / "net.pt2")
    model = resolve_model(str(tmp_path / "net.pt2"))
    with pytest.warns(UserWarning, match="takes batches of 1 only"):
        program = hp.capture(model.module, model.example)
    assert program.signature.fixed_batch == 1


def test_an_onnx_model_is_converted_and_compared(net: Net, tmp_path: Path) -> None:
    import_torchvision()  # which onnx2torch imports
    pytest.importorskip("onnx2torch", reason="converts ONNX models; pip install 'hoplon[onnx]'")
    onnx = pytest.importorskip("onnx")
    helper, weight, bias = onnx.helper, net.linear.weight.detach().numpy(), net.linear.bias.detach().numpy()
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "weight", "bias"], ["linear"], transB=1),
            helper.make_node("Relu", ["linear"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", 1, ["batch", 6])],
        [helper.make_tensor_value_info("y", 1, ["batch", 3])],
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "net.onnx")
    model = resolve_model(str(tmp_path / "net.onnx"))
    program, x = hp.capture(model.module, model.example), torch.arange(12.0).view(2, 6)
    with torch.inference_mode():
        assert torch.allclose(program(x), net(x))


def test_operators_that_no_converter_knows_are_named(tmp_path: Path) -> None:
    import_torchvision()  # which onnx2torch imports
    pytest.importorskip("onnx2torch", reason="converts ONNX models; pip install 'hoplon[onnx]'")
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Det", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, ["n", 3, 3])], [value("y", 1, ["n"])])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "det.onnx")
    with pytest.raises(
        HoplonError, match=r"operators that onnx2torch knows in .*det.onnx, got: .*Det.*file.py:factory"
    ):
        resolve_model(str(tmp_path / "det.onnx"))


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_weights_without_a_network_are_no_model(net: Net, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"net.{ending}"
    save_file(net.state_dict(), file) if ending == "safetensors" else torch.save(net.state_dict(), file)
    with pytest.raises(
        HoplonError, match=r"expected a model in .*, got weights without a network \(a state dict\); wr"
    ):
        resolve_model(str(file))


def test_a_pickle_is_not_executed(net: Net, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(HoplonError, match=r"got a pickle, which is never executed; write a factory"):
        resolve_model(str(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt2", None, "expected a model in .*none.pt2, which does not exist"),
        ("bad.pt2", b"not an archive", "expected a program of torch.export in .*bad.pt2, got"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        resolve_model(str(tmp_path / name))


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(
        HoplonError, match=r"expected no_such_package for a model, got none .*pip install 'hoplon\[hf\]'"
    ):
        required("no_such_package", "hf", "a model")


def test_each_library_names_an_extra_of_the_project() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{library.extra} = [" in project for library in LIBRARIES.values())


def test_boxes_that_overlap_a_better_one_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * 4
    boxes = torch.cat([corners, corners + 1 + torch.rand(40, 2, generator=generator)], 1)
    scores = torch.rand(40, generator=generator)
    kept: list[int] = []
    for index in sorted(range(40), key=lambda one: -float(scores[one])):  # as its definition says, box by box
        x, y = (max(0.0, 0.0) for _ in range(2))
        overlaps = []
        for other in kept:
            (a, b, c, d), (e, f, g, h) = boxes[index].tolist(), boxes[other].tolist()
            x, y = max(0.0, min(c, g) - max(a, e)), max(0.0, min(d, h) - max(b, f))
            overlaps.append(x * y / ((c - a) * (d - b) + (g - e) * (h - f) - x * y))
        if all(overlap <= 0.3 for overlap in overlaps):
            kept.append(index)
    assert non_maximum_suppression(boxes, scores, 0.3).tolist() == kept
    assert len(kept) < 40
    assert non_maximum_suppression(boxes[:0], scores[:0], 0.3).tolist() == []


def test_a_detector_takes_a_batch_of_pictures() -> None:
    models = import_torchvision().models.detection
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = models.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=3, topk_candidates=5
        )
    found = Detector(inner).eval()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert len(found) == 2
    assert found[0]["boxes"].shape[1] == 4
    assert len(found[0]["boxes"]) == len(found[0]["scores"])


def test_a_segmentation_network_goes_by_name() -> None:
    model = library_model("torchvision", "lraspp_mobilenet_v3_large", seed=0)
    with torch.inference_mode():
        assert model.module(torch.zeros(1, 3, 32, 32))["out"].shape == (1, 21, 32, 32)
    with pytest.raises(HoplonError, match="expected a torchvision model of pictures in float, got raft_small"):
        library_model("torchvision", "raft_small", seed=0)


def test_a_folder_of_transformers_is_a_model_of_its_data(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'hoplon[hf]'")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=32, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = resolve_model(f"hf:{tmp_path}")
    assert type(model.module).__name__ == "BertForSequenceClassification"
    data = hp.Inputs({"input_ids": torch.ones(3, 5, dtype=torch.int64), "attention_mask": torch.ones(3, 5).long()})
    assert hp.Inputs(hp.Example.of(model.for_data(data).example).x).tensors[0].shape == (3, 5)


def test_nothing_is_downloaded_for_a_name_that_is_no_folder() -> None:
    pytest.importorskip("transformers", reason="pip install 'hoplon[hf]'")
    with pytest.raises(
        HoplonError, match="expected a folder with config.json, .* got hf:bert-base; nothing is downloa"
    ):
        resolve_model("hf:bert-base")


def test_a_network_of_timm_goes_by_name() -> None:
    import_torchvision()
    pytest.importorskip("timm", reason="pip install 'hoplon[timm]'")
    model = resolve_model("timm:resnet10t")
    assert hp.Inputs(hp.Example.of(model.example).x).tensors[0].shape == (2, 3, 176, 176)
    with pytest.raises(HoplonError, match="no timm model"):
        resolve_model("timm:no_such_network")
