"""Faults in generation: equal to the user's own ``generate`` once per fault, how much faster, and what is fragile.

Faults in the prefill, in steps, in the cache and in weights meet the small decoder (trained, where its weights are in
the cache folder, else as it is drawn) or a tiny Llama of transformers. Runs are compared with naive reruns: `generate`
of the model, with the fault struck by hooks. Times are processor times of this process, of units of faults and of
`generate` alone, without hooks or faults, in turn; naive reruns take longer than that.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console
from torch import Tensor, nn

import hoplon as hp
from hoplon.campaign.results import Results
from hoplon.criteria import Generation, generation_kinds
from hoplon.errors import DataError
from hoplon.program import DecodingProgram, capture_decoder
from hoplon.zoo.datasets._shakespeare import shakespeare
from hoplon.zoo.seeding import seeded
from hoplon_studies.networks.decoder import Decoder
from hoplon_studies.training.weights import trained

ROOT = Path(__file__).resolve().parents[1]
SITES: dict[str, hp.Values | hp.Memory] = {
    "prefill": hp.Values("*@prefill"),
    "steps": hp.Values("*@step*"),
    "keys": hp.Values(kind="keys"),
    "values": hp.Values(kind="values"),
    "weights": hp.Memory(),
}


@dataclass(frozen=True)
class Case:
    """One kind of faults: how they end, how many runs end otherwise in naive reruns, and times in milliseconds."""

    model: str
    kind: str
    faults: int
    failing: float
    low: float
    high: float
    outcomes: dict[str, int]
    near_ties: int
    compared: int
    different: int
    per_fault: list[float]
    generate: list[float]

    @property
    def times_faster(self) -> float:
        """Median time of one ``generate``, over the median time of a fault in a unit."""
        return statistics.median(self.generate) / statistics.median(self.per_fault)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, prompts, and how the user has it generate."""

    name: str
    model: nn.Module
    prompts: Tensor
    generate: Callable[[Tensor], Tensor]


def decoder(prompts: int, length: int, new_tokens: int) -> Subject:
    """The small decoder, with what a training has left in the cache folder, on the last tenth of its text."""
    try:
        model: Any = trained("decoder-shakespeare", make=False).module
    except DataError:
        with seeded(0):
            model = Decoder().eval()
    held_out = shakespeare().held_out
    texts = held_out.sample(prompts, seed=0).tensors[0][:, :length].contiguous()
    return Subject("decoder-shakespeare", model, texts, lambda prompt: model.generate(prompt, new_tokens))


def llama(prompts: int, length: int, new_tokens: int) -> Subject:
    """A tiny Llama of transformers with random weights, wide enough that its texts do not end in one token."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with seeded(0):
        model: Any = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    texts = torch.randint(200, (prompts, length), generator=torch.Generator().manual_seed(0))

    def generate(prompt: Tensor) -> Tensor:
        found: Tensor = model.generate(prompt, max_new_tokens=new_tokens, do_sample=False)
        return found[:, length:]

    return Subject("llama-tiny", model, texts, generate)


def run(subject: Subject, program: DecodingProgram, kind: str, *, count: int, compared: int, repeats: int) -> Case:
    """Time a campaign's units and ``generate`` in turn; then rerun the first faults the naive way."""
    plan = hp.Campaign(program, hp.Inputs(subject.prompts), sites=SITES[kind], criterion=Generation())
    runner, _ = plan.prepare(count=count, seed=0)
    per_fault, plain = [], []
    for repeat in range(repeats):
        table = runner.draw(repeat, min(count, runner.unit_size))
        begun = time.process_time()
        runner.injector.runs(table)
        per_fault.append(1e3 * (time.process_time() - begun) / len(table.frame["fault"].unique()))
        begun = time.process_time()
        subject.generate(subject.prompts[:1])
        plain.append(1e3 * (time.process_time() - begun))
    results = plan.run(count=count, seed=0)
    rate = results.summary()[0].failure
    kinds = generation_kinds(results.runs)
    rows, different = _compared(subject, results, kinds, compared)
    return Case(
        subject.name,
        kind,
        count,
        rate.estimate,
        rate.low,
        rate.high,
        dict(kinds.value_counts().iter_rows()),
        int(results.runs["near_tie"].sum()),
        rows,
        different,
        per_fault,
        plain,
    )


def _compared(subject: Subject, results: Results, kinds: pl.Series, most: int) -> tuple[int, int]:
    """How many runs were done again the naive way, and how many of them ended otherwise."""
    from tests.support.naive_generation import naive_kind, naive_memory_run, naive_run

    naive = naive_memory_run if results.target == "memory" else naive_run
    words = {row["fault"]: row for row in results.faults.frame.iter_rows(named=True)}
    golden = [subject.generate(prompt.unsqueeze(0)).flatten().tolist() for prompt in subject.prompts]
    rows = list(zip(results.runs.iter_rows(named=True), kinds, strict=True))[:most]
    different = 0
    for row, kind in rows:
        word, prompt = words[row["fault"]], subject.prompts[row["input"]].unsqueeze(0)
        where = str(word["site"]), word["element"], word["keep"], word["flip"]
        tokens, finite = naive(subject.model, subject.generate, prompt, *where)
        different += naive_kind(golden[row["input"]], tokens, finite=finite) != kind
    return len(rows), different


def shown(case: Case, console: Console) -> None:
    """Print one case."""
    spread = [statistics.median(case.generate) / value for value in case.per_fault]
    console.print(
        f"{case.model} {case.kind}: {100 * case.failing:.2f} % [{100 * case.low:.2f}, {100 * case.high:.2f}] of "
        f"{case.faults} faults change the answer; {case.outcomes}; {case.near_ties} near ties; {case.different} of "
        f"{case.compared} naive reruns differ; {statistics.median(case.per_fault):.2f} ms per fault, generate "
        f"{statistics.median(case.generate):.1f} ms: {case.times_faster:.1f} times faster [{min(spread):.1f}, "
        f"{max(spread):.1f}]"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["decoder", "llama"], default="decoder")
    parser.add_argument("--faults", type=int, default=500, help="of each kind; of weights a sixteenth")
    parser.add_argument("--compared", type=int, default=500, help="runs of each kind that are done again the naive way")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(SITES), default=list(SITES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sys.path.append(str(ROOT))
    console = Console(width=200)
    make = decoder if given.model == "decoder" else llama
    subject = make(given.prompts, given.length, given.tokens)
    program = capture_decoder(subject.model, subject.prompts, new_tokens=given.tokens, name=subject.name)
    cases = []
    for kind in given.kinds:
        count = max(1, given.faults // 16) if kind == "weights" else given.faults
        cases.append(run(subject, program, kind, count=count, compared=given.compared, repeats=given.repeats))
        shown(cases[-1], console)
    if given.json is not None:
        given.json.write_text(json.dumps({"cases": [asdict(case) for case in cases]}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
