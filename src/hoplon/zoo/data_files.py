"""Data in files that hold no arrays: lines of JSON, and folders of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hoplon.errors import DataError, said
from hoplon.program.inputs import Inputs
from hoplon.zoo.libraries import required

_TEXT, _PAIR, _LABEL = "text", "text_pair", "label"
_PIXELS, _RESIZED = 224, 256  # as in torchvision's evaluation of ImageNet
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_lines(text: str) -> Inputs:
    """The data of ``FILE.jsonl``, or of ``FILE.jsonl@FOLDER`` with texts and the folder of their tokenizer.

    Each line is an object: inputs by keyword, or ``text`` and perhaps ``text_pair``; and ``label``, if there are some.

    Raises:
        DataError: the file cannot be read, a line is no such object, or the tokenizer cannot fill up texts.
    """
    file, _, folder = text.partition("@")
    path = Path(file).expanduser()
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise DataError(f"expected an object in line {number} of {path}, got {line.strip()[:40]}")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"expected a file of JSON lines, got {path}: {said(error)}") from error
    if not rows:
        raise DataError(f"expected at least one line in {path}, got none")
    if not any(_TEXT in row for row in rows):
        return Inputs.from_dataset(rows, name=path.name)
    if not folder:
        raise DataError(f"expected the folder of a tokenizer for the texts in {path}, got none; give {file}@FOLDER")
    return Inputs.from_batches([_tokenized(rows, folder, path)], label=_LABEL, name=path.name)


def _tokenized(rows: list[dict[str, Any]], folder: str, path: Path) -> dict[str, Any]:
    transformers = required("transformers", "hf", "a tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder).expanduser(), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"expected a folder with a tokenizer of transformers, got {folder}: {said(error)}") from error
    if tokenizer.pad_token is None:
        raise DataError(
            f"expected a tokenizer that pads in {folder}, got one without padding token; set tokenizer.pad_token = "
            "tokenizer.eos_token and save it again with save_pretrained"
        )
    lacking = next((number for number, row in enumerate(rows, 1) if not isinstance(row.get(_TEXT), str)), None)
    if lacking is not None:
        raise DataError(f"expected a text in every line of {path}, got none in line {lacking}")
    pairs = [row[_PAIR] for row in rows] if all(_PAIR in row for row in rows) else None
    encoded = dict(tokenizer([row[_TEXT] for row in rows], pairs, padding=True, truncation=True, return_tensors="pt"))
    labels = [row.get(_LABEL) for row in rows]
    return encoded if all(label is None for label in labels) else {**encoded, _LABEL: labels}


def picture_folder(path: Path) -> tuple[Inputs, tuple[str, ...]]:
    """The pictures in a folder with a folder for each class, prepared as for ImageNet at 224 pixels, and the classes.

    Raises:
        DataError: no such folders, or a file that is no picture.
    """
    torchvision = required("torchvision", "vision", "a folder of pictures")
    required("PIL", "vision", "a folder of pictures")
    steps = torchvision.transforms
    prepared = steps.Compose(
        [steps.Resize(_RESIZED), steps.CenterCrop(_PIXELS), steps.ToTensor(), steps.Normalize(_MEAN, _DEVIATION)]
    )
    try:
        pictures = torchvision.datasets.ImageFolder(path, transform=prepared)
        return Inputs.from_dataset(pictures, name=path.name), tuple(pictures.classes)
    except OSError as error:  # of ImageFolder, and of Pillow for what is no picture
        raise DataError(f"expected a folder of pictures for each class in {path}, got: {said(error)}") from error
