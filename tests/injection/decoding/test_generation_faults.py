"""Faults in generation against the user's own ``generate``, run once per fault with hooks."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.criteria import Generation, generation_kinds
from hoplon.errors import CaptureError, HoplonError
from hoplon.injection.decoding import side_by_side
from hoplon.program import DecodingProgram, Draws, capture_decoder
from hoplon_studies.networks.decoder import Decoder
from tests.support.naive_generation import Generate, naive_kind, naive_memory_run, naive_run

VOCABULARY, LENGTH, NEW = 23, 9, 12
STRONG = hp.BitFlip(bits=(21, 22, 24, 25, 26, 29, 30, 31))
"""Bits that often change a token; of the others hardly any does."""
SITES = {
    "prefill": hp.Values("*@prefill"),
    "steps": hp.Values("*@step*"),
    "caches": hp.Values(kind=("keys", "values")),
    "memory": hp.Memory(),
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Decoder(VOCABULARY, width=16, layers=2, heads=2, hidden=24).eval()
        nn.init.normal_(model.head.weight, std=0.5)  # texts that do not end in one token
        nn.init.normal_(model.embedding.weight)
    return model


@pytest.fixture(scope="module")
def prompts() -> Tensor:
    return torch.randint(VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def program(decoder: Decoder, prompts: Tensor) -> DecodingProgram:
    return capture_decoder(decoder, prompts, new_tokens=NEW)


def campaign(program: DecodingProgram, prompts: Tensor, sites: Any, **options: Any) -> hp.Campaign:
    return hp.Campaign(program, hp.Inputs(prompts), sites=sites, fault_model=STRONG, criterion=Generation(), **options)


def differences(model: nn.Module, generate: Generate, prompts: Tensor, results: hp.Results) -> list[tuple[Any, ...]]:
    """Runs that the user's own generation, struck the same way, judges otherwise."""
    golden = [generate(prompt.unsqueeze(0)).flatten().tolist() for prompt in prompts]
    words = {row["fault"]: row for row in results.faults.frame.iter_rows(named=True)}
    kinds = generation_kinds(results.runs)
    found = []
    for row, kind in zip(results.runs.iter_rows(named=True), kinds, strict=True):
        word, number = words[row["fault"]], row["input"]
        run = naive_memory_run if results.target == "memory" else naive_run
        where = str(word["site"]), word["element"], word["keep"], word["flip"]
        tokens, finite = run(model, generate, prompts[number].unsqueeze(0), *where)
        if (expected := naive_kind(golden[number], tokens, finite=finite)) != kind:
            found.append((*where, expected, kind, row["near_tie"]))
    return found


@pytest.mark.parametrize("name", SITES)
def test_outcomes_are_those_of_the_users_own_generation(
    name: str, decoder: Decoder, prompts: Tensor, program: DecodingProgram
) -> None:
    results = campaign(program, prompts, SITES[name]).run(count=16 if name == "memory" else 80, seed=0)
    assert not differences(decoder, lambda prompt: decoder.generate(prompt, NEW), prompts, results)
    kinds = set(generation_kinds(results.runs))
    assert {"identical"} < kinds, kinds  # some do harm, or the test would show little


def test_a_generation_may_end_early_and_a_fault_behind_its_end_reaches_nothing(
    decoder: Decoder, prompts: Tensor
) -> None:
    texts = decoder.generate(prompts[:1], NEW), decoder.generate(prompts[1:2], NEW)
    stops = (int(texts[0][0, 3]), int(texts[1][0, 6]))
    program = capture_decoder(decoder, prompts, new_tokens=NEW, stops=stops)
    results = campaign(program, prompts, SITES["steps"]).run(count=80, seed=1)
    assert not differences(decoder, lambda prompt: decoder.generate(prompt, NEW, stops=stops), prompts, results)
    assert not results.runs["reached"].all()
    behind = results.runs.filter(~pl.col("reached"))
    assert set(generation_kinds(behind)) == {"identical"}


def test_drawn_tokens_come_from_the_same_random_numbers(decoder: Decoder, prompts: Tensor) -> None:
    def generate(prompt: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return decoder.generate(prompt, NEW, temperature=0.8, generator=generator)

    program = capture_decoder(decoder, prompts, new_tokens=NEW, draws=Draws(0.8, seed=7))
    tokens, _ = program(prompts)
    assert [row.tolist() for row in tokens] == [generate(prompt.unsqueeze(0))[0].tolist() for prompt in prompts]
    assert tokens.tolist() != capture_decoder(decoder, prompts, new_tokens=NEW)(prompts)[0].tolist()
    results = campaign(program, prompts, SITES["caches"]).run(count=60, seed=2)
    sound = results.runs.filter(pl.col("answer").cast(pl.String) != "nonfinite")["fault"]  # of which multinomial raises
    kept = [row for row in zip(results.runs["fault"], generation_kinds(results.runs), strict=True) if row[0] in sound]
    words = {row["fault"]: row for row in results.faults.frame.iter_rows(named=True)}
    given = dict(results.runs.select("fault", "input").iter_rows())
    for fault, kind in kept:
        word, prompt = words[fault], prompts[given[fault]].unsqueeze(0)
        where = str(word["site"]), word["element"], word["keep"], word["flip"]
        found, all_finite = naive_run(decoder, generate, prompt, *where)
        assert naive_kind(generate(prompt)[0].tolist(), found, finite=all_finite) == kind, word


@pytest.mark.parametrize("name", SITES)
def test_runs_alone_have_the_outcomes_of_runs_side_by_side(
    name: str, prompts: Tensor, program: DecodingProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = campaign(program, prompts, SITES[name])
    count = 6 if name == "memory" else 60
    together = plan.run(count=count, seed=3)
    assert together.runs["near_tie"].mean() < 0.05
    monkeypatch.setattr(side_by_side, "NEAR", 1e6)
    alone = plan.run(count=count, seed=3)
    changed = alone.runs["reached"] & (alone.runs["answer"].cast(pl.String) != "nonfinite")
    assert alone.runs.filter(changed)["near_tie"].any()
    assert alone.runs.drop("near_tie").equals(together.runs.drop("near_tie"))
    assert alone.faults.digest() == together.faults.digest()


def test_words_before_a_fault_are_those_of_the_users_kernels(prompts: Tensor, program: DecodingProgram) -> None:
    """Where they are looked at one at a time, in the passes of generation itself."""
    table = campaign(program, prompts, SITES["steps"]).draw(count=40, seed=4)
    runner, _ = campaign(program, prompts, SITES["steps"]).prepare(count=40, seed=4)
    _, together = runner.injector.runs(table)
    bare = capture_decoder(program.causal.module, prompts, new_tokens=NEW)
    object.__setattr__(bare, "roles", {})
    runner, _ = campaign(bare, prompts, SITES["steps"]).prepare(count=40, seed=4)
    _, alone = runner.injector.runs(table)
    assert together.digest() == alone.digest()
    assert (together.frame["before"] != together.frame["after"]).all()


def test_results_are_grouped_by_operator_and_step(prompts: Tensor, program: DecodingProgram) -> None:
    results = campaign(program, prompts, hp.Values("layers.0.gate:*")).run(count=60, seed=0)
    steps = results.by("step")
    assert set(steps["step"]) <= set(range(NEW))
    assert steps["n_runs"].sum() == 60
    assert results.by("operator")["operator"].to_list() == ["layers.0.gate:linear"]
    memory = campaign(program, prompts, hp.Memory("head.*")).run(count=3, seed=0)
    assert memory.by("operator", "step").select("operator", "step").rows() == [("head.weight", None)]


def test_a_program_travels_to_other_processes(prompts: Tensor, program: DecodingProgram) -> None:
    again = pickle.loads(pickle.dumps(program))
    assert again.fingerprint() == program.fingerprint()
    assert torch.equal(again(prompts)[0], program(prompts)[0])


def test_the_model_is_as_it_was_after_faults_in_its_weights(
    decoder: Decoder, prompts: Tensor, program: DecodingProgram
) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    campaign(program, prompts, SITES["memory"]).run(count=4, seed=9)
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state_dict().items())


def test_what_cannot_be_captured_is_refused(decoder: Decoder, prompts: Tensor, program: DecodingProgram) -> None:
    with pytest.raises(CaptureError, match="takes \\(tokens, cache\\)"):
        capture_decoder(nn.Linear(3, 3).eval(), prompts, new_tokens=4)
    with pytest.raises(CaptureError, match="expected prompts int64"):
        capture_decoder(decoder, prompts.float(), new_tokens=4)

    class Other(Decoder):
        def generate(self, tokens: Tensor, new_tokens: int, **_: Any) -> Tensor:
            return torch.zeros(1, new_tokens, dtype=torch.int64)

    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = Other(VOCABULARY, width=16, layers=1, heads=2, hidden=24).eval()
    with pytest.raises(CaptureError, match="expected greedy generation"):
        capture_decoder(other, prompts, new_tokens=4)
    with pytest.raises(HoplonError, match="design='uniform'"):
        campaign(program, prompts, SITES["steps"]).run(half_width=0.1, design="two-phase")


def _tiny(transformers: Any, name: str) -> nn.Module:
    settings = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None}
    llama = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    makers: dict[str, Callable[[], nn.Module]] = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, **llama)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings, **llama)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**settings, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = makers[name]().eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None  # no token stands for it
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_models_of_transformers_generate_as_they_do(name: str, prompts: Tensor) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model: Any = _tiny(transformers, name)

    def generate(prompt: Tensor) -> Tensor:
        return model.generate(prompt, max_new_tokens=NEW, do_sample=False)[:, LENGTH:]

    program = capture_decoder(model, prompts, new_tokens=NEW)
    assert all(program.goes_together(site) for site in program.value_sites if site.dtype.is_floating_point)
    for name, sites in SITES.items():
        results = campaign(program, prompts, sites).run(count=6 if name == "memory" else 30, seed=0)
        assert not differences(model, generate, prompts, results)
