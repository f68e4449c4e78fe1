"""Data in lines of JSON and in folders of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hoplon.errors import DataError
from hoplon.zoo import resolve_data

ROWS = [
    {"input_ids": [5, 6, 7][: 2 + n % 2], "attention_mask": [1, 1, 1][: 2 + n % 2], "label": n % 3} for n in range(9)
]


def written(path: Path, rows: list[object]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def test_lines_of_numbers_are_inputs_by_keyword(tmp_path: Path) -> None:
    data = resolve_data(written(tmp_path / "rows.jsonl", [*ROWS]))
    assert len(data.calibration) == 1  # the first 20 % of so few
    assert len(data.held_out) == 8
    assert data.held_out.names == ("input_ids", "attention_mask")
    assert data.held_out.tensors[0].shape == (8, 3)
    assert data.held_out.tensors[1][1].tolist() == [1, 1, 0]
    assert data.held_out.y is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected at least one line"),
        ("{}\n[1]\n", r"expected an object in line 2 of .*, got \[1\]"),
        ("{\n", "expected a file of JSON lines, got"),
        ('{"text": "a", "label": 1}\n', "the folder of a tokenizer for the texts in .*; give .*@FOLDER"),
        (
            '{"input_ids": "a b", "label": 1}\n',
            "expected numbers in input_ids of sample 0, got the text 'a b'; tokenize",
        ),
    ],
)
def test_lines_that_are_no_data_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        resolve_data(str(tmp_path / "rows.jsonl"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a file of JSON lines, got .*none.jsonl"):
        resolve_data(str(tmp_path / "none.jsonl"))


def tokenizer(folder: Path, **tokens: str) -> Path:
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'hoplon[hf]'")
    transformers = pytest.importorskip("transformers", reason="pip install 'hoplon[hf]'")
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "good", "bad", "film"))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **tokens).save_pretrained(folder)
    return folder


def test_lines_of_texts_with_a_tokenizer(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "words", pad_token="[PAD]")
    texts = [{"text": "good film", "label": 1}, {"text": "bad", "label": 0}] * 3
    data = resolve_data(f"{written(tmp_path / 'films.jsonl', [*texts])}@{folder}")
    held = dict(zip(data.held_out.names or (), data.held_out.tensors, strict=True))
    assert held["input_ids"].tolist()[:2] == [[3, 0], [2, 4]]
    assert held["attention_mask"].tolist()[:2] == [[1, 0], [1, 1]]
    assert data.held_out.y is not None
    assert data.held_out.y.tolist() == [0, 1, 0, 1, 0]


def test_a_tokenizer_that_does_not_pad_is_refused(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "words")
    with pytest.raises(
        DataError, match=r"expected a tokenizer that pads in .*; set tokenizer.pad_token = tokenizer.eos"
    ):
        resolve_data(f"{written(tmp_path / 'films.jsonl', [{'text': 'good', 'label': 1}])}@{folder}")


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            image.fromarray(np.full((40, 60, 3), 50 * number, np.uint8)).save(tmp_path / name / f"{number}.png")
    data = resolve_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.held_out.tensors[0].shape == (5, 3, 224, 224)
    assert data.held_out.y is not None
    assert data.held_out.y.tolist() == [0, 0, 1, 1, 1]
    assert torch.allclose(data.held_out.tensors[0][0, 0], torch.tensor((50 / 255 - 0.485) / 0.229))
    (tmp_path / "cat" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="expected a folder of pictures for each class in .*, got"):
        resolve_data(str(tmp_path))


def test_a_name_of_the_zoo_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert resolve_data("digits").name == "digits"


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder of pictures for each class in .*, got"):
        resolve_data(str(tmp_path))


def test_several_arrays_of_one_file_are_keywords(tmp_path: Path) -> None:
    ids, mask = np.ones((30, 4), np.int64), np.ones((30, 4), np.float32)
    np.savez(tmp_path / "two.npz", input_ids=ids, attention_mask=mask, y=np.zeros(30, np.float32))
    data = resolve_data(str(tmp_path / "two.npz"))
    assert data.held_out.names == ("input_ids", "attention_mask")
    assert data.held_out.y is not None
    assert data.held_out.y.dtype == torch.float32
    assert (len(data.calibration), len(data.held_out)) == (6, 24)
    np.savez(tmp_path / "odd.npz", input_ids=ids, attention_mask=mask, input_ids_calibration=ids)
    with pytest.raises(DataError, match="expected a calibration part of every input in .*, got input_ids_calibration"):
        resolve_data(str(tmp_path / "odd.npz"))
