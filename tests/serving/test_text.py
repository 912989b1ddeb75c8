"""Pieces of an answer's text join to the text, whatever bytes the tokens are, and end before a stop text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longwave.serving.text import Answer


def pieces(tokenizer: Any, ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    answer = Answer(tokenizer, stops)
    return [*(answer.add(id) for id in ids), answer.rest()]


# The tokenizer of bytes has byte b at some id > 0, and the end token at 0.
BYTES = st.lists(st.integers(0, 255), max_size=40)
TEXTS = st.text(st.sampled_from("ab é漢🙂\ufffd"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(ids=BYTES, text=TEXTS, more=BYTES)
def test_pieces_join_to_the_decoded_text(tokenizer: Any, ids: list[int], text: str, more: list[int]) -> None:
    ids = [*ids, *tokenizer(text)["input_ids"], *more]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS.filter(lambda text: "\ufffd" not in text))
def test_no_piece_breaks_a_character(tokenizer: Any, text: str) -> None:
    found = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert found == [text[end - 1 : end] if end else "" for end in ends(text)] + [""]


def ends(text: str) -> list[int]:
    """For each byte of a text the character that is complete with it, counted from 1; 0 for none."""
    found: list[int] = []
    for number, character in enumerate(text, 1):
        found += [*[0] * (len(character.encode()) - 1), number]
    return found


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, stop=st.text(st.sampled_from("ab é漢"), min_size=1, max_size=3))
def test_the_text_ends_before_a_stop(tokenizer: Any, text: str, stop: str) -> None:
    ids = tokenizer(text)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces(tokenizer, ids, (stop,))) == whole.partition(stop)[0]


def test_what_may_begin_a_stop_is_held_until_it_is_certain(tokenizer: Any) -> None:
    assert pieces(tokenizer, tokenizer("xaaab")["input_ids"], ("aab", "never")) == ["x", "", "", "a", "", ""]
    assert pieces(tokenizer, tokenizer("xaa")["input_ids"], ("aab",)) == ["x", "", "", "aa"]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """Words as SentencePiece has them: a space before each, which a decoder takes off where a text begins."""
    vocabulary = {"<s>": 0, "▁the": 1, "▁rope": 2, "s": 3, ".": 4, "<0xE6>": 5, "<0xBC>": 6, "<0xA2>": 7}
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")


@pytest.mark.parametrize("clean", [False, True])
@given(parts=st.lists(st.sampled_from([[0], [1], [2], [3], [4], [5, 6, 7]]), max_size=14))
@settings(max_examples=100, deadline=None)
def test_spaces_before_words_stay(words: Any, clean: bool, parts: list[list[int]]) -> None:
    ids = [id for part in parts for id in part]
    words.clean_up_tokenization_spaces = clean
    expected = words.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces(words, ids)) == expected
