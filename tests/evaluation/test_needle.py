"""Needles go between sentences of the haystack; a model that reads it all finds them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.evaluation.haystack import Haystack, sentences, template_of
from longwave.evaluation.kinds import Share
from longwave.evaluation.needle import NEEDLE, QUESTION, needle
from longwave.evaluation.results import Grid
from longwave.evaluation.trials import Prompts
from longwave.report.heatmap import grid_figure
from longwave.report.plots import save

TEXT = "".join(f"{'Sentence' if i % 3 else 'This one is'} number {i}{'.!?'[i % 3]} " for i in range(200))


def test_sentences_join_to_the_text() -> None:
    text = 'CHAPTER I\n\nMr. J. K. Smith said "No!" He left.\nIt cost 3.50 pounds... Why? (Ask him.) And so'
    found = sentences(text)
    assert "".join(found) == text
    assert [piece.strip() for piece in found] == [
        "CHAPTER I", 'Mr. J. K. Smith said "No!"', "He left.", "It cost 3.50 pounds...", "Why?", "(Ask him.)", "And so",
    ]  # fmt: skip


def test_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = Prompts(tokenizer, template_of(NEEDLE, QUESTION), Haystack(tokenizer, TEXT, 5))
    trials = prompts.trials(600, count=20, depths=5, seed=0)
    assert trials == prompts.trials(600, count=20, depths=5, seed=0)
    beginnings = set()
    for trial in trials:
        assert len(trial.ids) == 600
        text = tokenizer.decode(list(trial.ids[1:]))
        before, city, key, after = re.split(r" The magic number of (\w+) is (\d{5})\.", text, maxsplit=1)
        assert key == trial.key
        question = f"\n\nWhat is the magic number of {city}? The magic number of {city} is {key}"
        assert after.endswith(question)
        hay = before + after.removesuffix(question)
        assert hay in TEXT
        assert before == "" or before[-1] in ".!?"
        assert trial.place == pytest.approx(len(before) / len(hay))
        assert abs(trial.place - trial.depth) <= 30 / len(hay)  # sentences are no longer than that
        beginnings.add(TEXT.index(hay))
        assert tokenizer.decode(list(trial.ids[-trial.answer :])) == f" {key}"
    assert len(beginnings) > 15


def test_several_needles(tokenizer: PreTrainedTokenizerFast) -> None:
    """The question is about one of them; the others are of the same form, at other depths, and name other cities."""
    hay = Haystack(tokenizer, TEXT, 5)
    one = Prompts(tokenizer, template_of(NEEDLE, QUESTION), hay).trials(900, count=20, depths=5, seed=0)
    trials = Prompts(tokenizer, template_of(NEEDLE, QUESTION), hay, keys=3).trials(900, count=20, depths=5, seed=0)
    assert [(trial.key, trial.depth) for trial in trials] == [(trial.key, trial.depth) for trial in one]
    for trial in trials:
        assert len(trial.ids) == 900
        text, question = tokenizer.decode(list(trial.ids[1:])).split("\n\nWhat is the magic number of ")
        needles = list(re.finditer(r" The magic number of (\w+) is (\d{5})\.", text))
        assert len({found[1] for found in needles}) == len({found[2] for found in needles}) == 3
        city = next(found[1] for found in needles if found[2] == trial.key)
        assert question == f"{city}? The magic number of {city} is {trial.key}"
        filler = len(re.sub(r" The magic number of (\w+) is (\d{5})\.", "", text))
        before = {
            found[2]: found.start() - sum(len(each[0]) for each in needles[:i]) for i, found in enumerate(needles)
        }
        assert trial.place == pytest.approx(before[trial.key] / filler)
        places = sorted(place / filler for place in before.values())
        assert min(b - a for a, b in pairwise(places)) > 0.25
    assert [sum(len(trial.ids) for trial in each) for each in (one, trials)] == [18_000, 18_000]


def test_several_needles_must_be_told_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    hay = Haystack(tokenizer, TEXT, 5)
    with pytest.raises(ValueError, match=r"3 keys needs a needle and a question that both name the \{city\}"):
        Prompts(tokenizer, template_of("The vault of {city} opens with {key}.", "It opens with"), hay, keys=3)


def test_real_tokenizers_give_the_same_text(shared: Path) -> None:
    essay = next((shared / "data" / "haystack").rglob("*.txt")).read_text("utf-8")[:20_000]
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "models" / "stories260K" / "hf")
    haystack = Haystack(tokenizer, essay, 10)
    assert tokenizer.decode(haystack.ids) == tokenizer.decode(tokenizer(essay, add_special_tokens=False)["input_ids"])
    trial = Prompts(tokenizer, template_of(NEEDLE, QUESTION), haystack).trial(2000, "01234", 0.5)
    assert ". The magic number of Hanoi is 01234." in tokenizer.decode(list(trial.ids))
    assert abs(trial.place - 0.5) < 0.1


@pytest.mark.slow
def test_the_demo_model_finds_what_it_was_trained_on_within_its_length_only() -> None:
    folder = Path(longwave.__file__).parent / "demo" / "model"
    model, tokenizer = longwave.load(folder), AutoTokenizer.from_pretrained(folder)
    found = needle(
        model, tokenizer, TEXT * 2, "1x,4x", trials=9, depths=3,
        needle="The pass key is {key}. Remember it. {key} is the pass key.",
        question="What is the pass key? The pass key is",
    )  # fmt: skip
    within, beyond = found.lengths
    assert within.rate.value >= 8 / 9
    assert beyond.rate.value <= 1 / 9
    assert list(within.by_depth()) == [0.0, 0.5, 1.0]


def test_haystack_too_short(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"the haystack has \d+ tokens, fewer than the \d+ that a prompt takes"):
        needle(llama, tokenizer, TEXT[:900], [2000])
    with pytest.raises(ValueError, match="the haystack has 1 sentences, too few for 10 depths"):
        needle(llama, tokenizer, "a " * 900, [300])
    with pytest.raises(ValueError, match=r"a prompt needs \d+ tokens, more than the length 64"):
        needle(llama, tokenizer, TEXT, "1x")


@pytest.mark.parametrize(
    ("text", "question", "message"),
    [
        ("It is 5.", QUESTION, "the needle must use {key}, and may use {city}, got 'It is 5.'"),
        ("{town} has {key}.", QUESTION, "the needle must use {key}"),
        (NEEDLE, "Is it {key}?", "the question must use {city} or nothing in braces"),
        ("{key", QUESTION, "the needle '{key' cannot be read"),
        ("{} {key}", QUESTION, "the needle must use {key}"),
    ],
)
def test_texts_that_cannot_be_asked(text: str, question: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        template_of(text, question)


@pytest.mark.parametrize("count", [1, 4])
def test_heat_maps(tmp_path: Path, count: int) -> None:
    grid = Grid("ntk", (64, 128), (0.0, 0.5, 1.0), ((1.0, 0.0), (0.5, 0.25), (1.0, 0.0)), runs=2)
    quantity = Share("Needle retrieval", "needles retrieved", "rate", place="needle", mapped=True)
    figure = grid_figure([grid] * count, quantity, original_length=64, title="Title", subtitle="about")
    path = save(figure, tmp_path / "n.svg")
    assert path.read_text().count("<image") >= count
    with Image.open(save(figure, tmp_path / "n.png")) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert {(0, 34, 78), (254, 232, 56)} <= colours  # the ends of the scale: 0 and 100 %
