"""The small language model: cached steps against whole texts, generation, its text and its recipe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hoplon.errors import DataError
from hoplon.zoo.datasets._shakespeare import WINDOW, decoded, encoded, shakespeare
from hoplon_studies.networks.decoder import Decoder
from hoplon_studies.training.recipes import RECIPES, Recipe, train

LETTERS = 65


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder(width=32, layers=2, heads=2, hidden=48).eval()


def test_it_has_about_a_million_weights() -> None:
    assert 950_000 <= sum(weights.numel() for weights in Decoder().parameters()) <= 1_050_000


@pytest.mark.parametrize("cuts", [(9,), (8, 1), (3, 4, 2), (1, 1, 7)])
def test_steps_with_a_cache_give_the_logits_of_the_whole_text(decoder: Decoder, cuts: tuple[int, ...]) -> None:
    tokens = torch.randint(LETTERS, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole, _ = decoder(tokens)
        cache, parts = None, []
        for part in tokens.split(cuts, 1):
            logits, cache = decoder(part, cache)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_no_token_sees_a_later_one(decoder: Decoder) -> None:
    tokens = torch.arange(8).unsqueeze(0)
    other = tokens.clone()
    other[0, 5] = 60
    with torch.inference_mode():
        one, two = decoder(tokens)[0], decoder(other)[0]
    assert torch.equal(one[:, :5], two[:, :5])
    assert not torch.equal(one[:, 5:], two[:, 5:])


def test_generation_takes_the_likeliest_token_until_one_that_stops_it(decoder: Decoder) -> None:
    prompt = torch.arange(5).unsqueeze(0)
    found = decoder.generate(prompt, 6)
    text = prompt
    for token in found[0]:
        with torch.inference_mode():
            assert decoder(text)[0][0, -1].argmax() == token
        text = torch.cat([text, token.view(1, 1)], 1)
    stop = int(found[0, 3])
    assert (
        decoder.generate(prompt, 6, stops=[stop])[0].tolist() == found[0, : found[0].tolist().index(stop) + 1].tolist()
    )


def test_draws_follow_the_generator_they_are_given(decoder: Decoder) -> None:
    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return decoder.generate(torch.arange(5).unsqueeze(0), 12, temperature=2.0, generator=generator)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_text_becomes_tokens_and_text_again() -> None:
    assert decoded(encoded("To be, or not?\n")) == "To be, or not?\n"
    assert decoded(torch.tensor([20, -1, -1])) == decoded(torch.tensor([20]))
    with pytest.raises(DataError, match="got '%'"):
        encoded("9 %")


def test_windows_are_labelled_with_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(chr(ord("a") + place % 26) for place in range(3000))
    (tmp_path / "tinyshakespeare.txt").write_text(text, "ascii")
    monkeypatch.setenv("HOPLON_DATA", str(tmp_path))
    data = shakespeare()
    assert (len(data.calibration), len(data.held_out)) == (2699 // WINDOW, 299 // WINDOW)
    for part in (data.calibration, data.held_out):
        assert part.y is not None
        assert torch.equal(part.tensors[0][:, 1:], part.y[:, :-1])
    assert decoded(data.held_out.tensors[0][0]) == text[2700 : 2700 + WINDOW]
    (tmp_path / "tinyshakespeare.txt").write_text("short", "ascii")
    with pytest.raises(DataError, match="a shorter text"):
        shakespeare()


def test_the_recipe_learns_what_follows_what() -> None:
    recipe = RECIPES["decoder-shakespeare"]
    assert (recipe.task, recipe.shape) == ("tokens", (WINDOW,))
    small = Recipe(
        "letters",
        lambda: Decoder(width=32, layers=1, heads=2, hidden=32),
        "tinyshakespeare",
        epochs=30,
        learning_rate=1e-2,
        task="tokens",
        batch_size=4,
    )
    x = (torch.arange(16).unsqueeze(1) + torch.arange(24)) % 7
    told: list[float] = []
    net = train(small, x, (x + 1) % 7, progress=lambda epoch, epochs, loss: told.append(loss))
    assert told[0] > told[-1]
    assert told[-1] < math.log(7) / 2
    assert torch.equal(net(x[:1])[0].argmax(-1), (x[:1] + 1) % 7)
