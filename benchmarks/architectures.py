"""Public architectures with random weights, from capture to guard: what each step ends in, and how long it takes.

A step ends in "ok", in one sentence of hoplon (an error, or warnings beside a result), or in a foreign exception, which
is a defect. A step that lacks what an earlier one did not give is not run. Inputs are noise, as small as each model
allows; what comes out of random weights means nothing, only that every step holds does.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import importlib
import importlib.util
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hoplon as hp
from hoplon.comparison.costs.latency import conditions
from hoplon.errors import HoplonWarning
from hoplon.program.eager import EagerProgram
from hoplon.zoo.seeding import seeded
from hoplon.zoo.torchvision_ops import import_torchvision

STEPS = ("capture", "inspect", "values", "memory", "profile", "ranger", "guard")
SAMPLES = 2
TOKENS = 100
FAULTS = 4


@dataclass(frozen=True)
class Architecture:
    """A model of a package by its name there.

    Args:
        shape: of one sample.
        options: of its factory.
        classes: the output is one row of class scores, so that TopK judges it; a deviation does where it is not.
        inputs: how many such tensors the model is called with.
    """

    name: str
    shape: tuple[int, ...] = (3, 64, 64)
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: bool = True
    inputs: int = 1
    package: str = "torchvision"


def _classifiers() -> Iterator[Architecture]:
    yield from map(Architecture, ("alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d"))
    yield from map(Architecture, ("wide_resnet50_2", "densenet121", "squeezenet1_0", "squeezenet1_1"))
    yield Architecture("googlenet", options={"init_weights": True})
    yield Architecture("inception_v3", (3, 75, 75), {"init_weights": True})
    yield from map(Architecture, ("shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"))
    yield from map(Architecture, ("mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf"))
    yield from map(Architecture, ("regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t"))
    yield Architecture("vit_b_32", options={"image_size": 64})
    yield Architecture("maxvit_t", (3, 224, 224))
    yield from map(Architecture, ("quantized_mobilenet_v2", "quantized_shufflenet_v2_x0_5"))


def _dense() -> Iterator[Architecture]:
    plain = {"weights_backbone": None}
    yield Architecture("fcn_resnet50", options={**plain, "aux_loss": True}, classes=False)
    for name in ("deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        yield Architecture(name, options=plain, classes=False)
    yield Architecture("raft_small", (3, 128, 128), classes=False, inputs=2)


def _video() -> Iterator[Architecture]:
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"):
        yield Architecture(name, (3, 8, 32, 32))
    yield Architecture("s3d", (3, 16, 224, 224))
    yield Architecture("mvit_v2_s", (3, 16, 224, 224))


def _detectors() -> Iterator[Architecture]:
    few = {"weights_backbone": None, "num_classes": 5}
    small = {**few, "min_size": 128, "max_size": 128}
    regions = {**small, "rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 10}
    found = {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 20}
    for name, options in {
        "fasterrcnn_mobilenet_v3_large_320_fpn": regions,
        "fasterrcnn_resnet50_fpn": regions,
        "maskrcnn_resnet50_fpn": {**regions, "box_score_thresh": 0.0, "box_detections_per_img": 10},
        "keypointrcnn_resnet50_fpn": {**regions, "num_classes": 2},
        "fcos_resnet50_fpn": small,  # noise gives no detection at its threshold
        "retinanet_resnet50_fpn": {**small, **found},
        "ssd300_vgg16": {**few, **found},
        "ssdlite320_mobilenet_v3_large": {**few, **found},
    }.items():
        yield Architecture(name, (3, 128, 128), options, classes=False)


def _others() -> Iterator[Architecture]:
    """What torchvision has not: run where its package is installed."""
    for name in ("mixer_s32_224", "deit_tiny_patch16_224", "poolformer_s12", "ghostnet_100", "edgenext_xx_small"):
        yield Architecture(name, (3, 224, 224), package="timm")
    small = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    for name, options in {
        "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "use_cache": False},
        "llama": {**small, "use_cache": False},
        "bert": small,
        "distilbert": {"n_layers": 2, "dim": 64, "n_heads": 4, "hidden_dim": 128},
    }.items():
        yield Architecture(name, (12,), {**options, "vocab_size": TOKENS}, False, package="transformers")


ARCHITECTURES = (*_classifiers(), *_dense(), *_video(), *_detectors(), *_others())
QUICK = ("alexnet", "squeezenet1_1", "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large")


@dataclass(frozen=True)
class Step:
    """What one step ended in.

    ``end``: "ok", "sentence" (an error of hoplon), "foreign" or "not run"; ``text``: the error; ``warned``: each
    warning of hoplon; ``other_warnings``: those of other packages, once each.
    """

    end: str
    seconds: float = 0.0
    text: str = ""
    warned: tuple[str, ...] = ()
    other_warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One architecture: the form of its program, and its steps by name."""

    name: str
    package: str
    form: str
    skipped: str
    steps: Mapping[str, Step]


def built(architecture: Architecture, *, seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model with random weights, and inputs of noise."""
    models, size = _torchvision().models, (SAMPLES, *architecture.shape)  # timm imports torchvision too
    with seeded(seed):
        if architecture.package == "transformers":
            package = importlib.import_module("transformers")
            config = package.AutoConfig.for_model(architecture.name, **architecture.options)
            return package.AutoModel.from_config(config).eval(), (torch.randint(0, TOKENS, size),)
        if architecture.package == "timm":
            model = importlib.import_module("timm").create_model(architecture.name, **architecture.options)
        else:
            model = models.get_model(architecture.name, weights=None, **architecture.options)
        return model.eval(), tuple(torch.rand(size) for _ in range(architecture.inputs))


def _torchvision() -> ModuleType:
    """torchvision, with plain operators in place of compiled ones that do not load beside this torch."""
    package = import_torchvision()
    if not package.extension._has_ops():
        package.ops.boxes.nms = _plain_nms
        rois = sys.modules["torchvision.ops.roi_align"]  # the package holds its function by the same name
        rois._roi_align = getattr(rois._roi_align, "__wrapped__", rois._roi_align)  # not compiled
    return package


def _plain_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    clashes = sys.modules["torchvision.ops.boxes"].box_iou(boxes, boxes) > iou_threshold
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    kept: list[int] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        if not suppressed[place]:
            kept.append(place)
            suppressed |= clashes[place]
    return torch.tensor(kept, dtype=torch.int64)


@dataclass
class Walk:
    """The steps of one architecture, each a method; what a step gives is kept for those after it."""

    architecture: Architecture
    model: nn.Module
    inputs: tuple[Tensor, ...]
    program: hp.Program | None = None
    ranges: hp.Ranges | None = None

    def capture(self) -> None:
        self.program = hp.capture(self.model, self.inputs, name=self.architecture.name)

    def inspect(self) -> None:
        str(hp.inspect(self._captured()))

    def values(self) -> None:
        self._campaign(hp.Values())

    def memory(self) -> None:
        self._campaign(hp.Memory())

    def profile(self) -> None:
        self.ranges = hp.profile_ranges(self._captured(), hp.Inputs(self.inputs), batch=SAMPLES)

    def ranger(self) -> None:
        if self.ranges is None:
            raise _NotRunError
        program, ranger = self._captured(), hp.Ranger(self.ranges)
        ranger.coverage(program)
        hardened = hp.harden(program, [ranger])
        size = program.signature.fixed_batch or SAMPLES
        with torch.inference_mode():
            hardened(*(part[:size] for part in self.inputs))

    def guard(self) -> None:
        hp.guard(self.model, [hp.Parity()]).check()

    def _captured(self) -> hp.Program:
        if self.program is None:
            raise _NotRunError
        return self.program

    def _campaign(self, sites: hp.Values | hp.Memory) -> None:
        criterion = hp.TopK() if self.architecture.classes else hp.Deviation((1.0,))
        campaign = hp.Campaign(self._captured(), hp.Inputs(self.inputs), sites=sites, criterion=criterion)
        str(campaign.run(count=FAULTS))


class _NotRunError(Exception):
    """What the step needs was not made."""


def taken(step: Callable[[], None]) -> Step:
    """Take a step, and say what it ended in."""
    begun, end, text = time.perf_counter(), "ok", ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            step()
        except _NotRunError:
            end = "not run"
        except hp.HoplonError as error:
            end, text = "sentence", str(error)
        except Exception as error:  # noqa: BLE001 -- that any other exception reaches a user is what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            end, text = "foreign", f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    texts = {
        owned: [str(one.message) for one in caught if issubclass(one.category, HoplonWarning) is owned]
        for owned in (True, False)
    }
    seconds = time.perf_counter() - begun
    return Step(end, seconds, text, tuple(texts[True]), tuple(dict.fromkeys(texts[False])))


def case_of(architecture: Architecture, options: argparse.Namespace) -> Case:
    if importlib.util.find_spec(architecture.package) is None:
        reason = f"{architecture.package} is not installed"
        return Case(architecture.name, architecture.package, "", reason, {})
    walk = Walk(architecture, *built(architecture, seed=options.seed))
    steps = {name: taken(getattr(walk, name)) for name in STEPS}
    form = {True: "eager", False: "graph"}[isinstance(walk.program, EagerProgram)] if walk.program is not None else ""
    return Case(architecture.name, architecture.package, form, "", steps)


def shown(case: Case) -> list[str]:
    """One row of the table: a step is its seconds where it went well, else its end; "!" counts warnings."""
    if case.skipped:
        return [case.name, case.skipped]
    row = [case.name, case.form]
    for step in case.steps.values():
        seconds = f"{step.seconds:.1f}" + (f" !{len(step.warned)}" if step.warned else "")
        row.append(seconds if step.end == "ok" else step.end)
    return row


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and cases there")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}, under 50 seconds")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these architectures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    known = [architecture.name for architecture in ARCHITECTURES]
    chosen = options.only or (QUICK if options.quick else known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"no architecture {', '.join(unknown)}; known are {', '.join(known)}")
    options.architectures = [one for one in ARCHITECTURES if one.name in chosen]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    console, progress = Console(width=150), Console(stderr=True)
    about = {**conditions(torch.device("cpu")), "samples": SAMPLES, "faults": FAULTS, "seed": options.seed}
    table = Table("architecture", "form", *STEPS, title="Seconds of each step, or its end", title_justify="left")
    cases: list[Case] = []
    for architecture in options.architectures:
        with progress.status(architecture.name):
            cases.append(case_of(architecture, options))
        table.add_row(*shown(cases[-1]))
        if options.json is not None:
            content = {"conditions": about, "cases": [asdict(case) for case in cases]}
            options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(table)
    for case in cases:
        for name, step in case.steps.items():
            for text in filter(None, (step.text, *step.warned)):
                console.print(f"{case.name}, {name}, {step.end}: {text}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
