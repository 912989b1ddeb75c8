"""What the server answers is what the model generates without it, at the same t."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from servers import L, build, generated

import longwave


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1, 256), k=length)


def ask(client: openai.OpenAI, prompt: Any, most: int = 12, **more: Any) -> Any:
    extra = more.pop("extra_body", {}) | {"return_token_ids": True}
    return client.completions.create(
        model="tiny", prompt=prompt, max_tokens=most, **{"temperature": 0} | more, extra_body=extra
    )


@pytest.mark.parametrize(("length", "factor"), [(20, 1.0), (52, 1.0), (53, 65 / 64), (180, 3.0), (1000, 1012 / 64)])
def test_an_answer_equals_generation_offline_at_its_t(
    client: openai.OpenAI, offline: Any, talking: Any, length: int, factor: float
) -> None:
    ids = prompt_of(length)
    found = ask(client, ids)
    (choice,) = found.choices
    expected = generated(offline, talking, ids, 12)
    assert choice.token_ids == expected and choice.prompt_token_ids == ids
    assert choice.text == talking.decode(expected, skip_special_tokens=True)
    assert found.longwave == {"factor": factor, "factors": [factor]}
    assert found.usage.prompt_tokens == length and found.usage.completion_tokens == len(expected)
    assert choice.finish_reason == ("stop" if expected[-1] == 0 else "length")


def test_within_L_log_probabilities_are_the_plain_models_bit_for_bit(client: openai.OpenAI) -> None:
    ids = prompt_of(40)
    (choice,) = ask(client, ids, 20, logprobs=2).choices
    whole = torch.tensor([ids + choice.token_ids])
    kwargs = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    plain = build().generate(whole[:, :40], max_new_tokens=20, **kwargs)
    assert plain.sequences.tolist() == whole.tolist()
    rows = [logits[0].float().log_softmax(-1) for logits in plain.logits]
    expected = [row[id].item() for row, id in zip(rows, choice.token_ids, strict=True)]
    assert choice.logprobs.token_logprobs == expected
    assert choice.logprobs.top_logprobs[0][choice.logprobs.tokens[0]] == expected[0]
    assert choice.logprobs.text_offset[0] == 0 and len(choice.logprobs.tokens) == len(expected)


def test_a_request_may_choose_t(client: openai.OpenAI, offline: Any, talking: Any) -> None:
    ids = prompt_of(100)
    by_length, chosen = ask(client, ids), ask(client, ids, extra_body={"rope_factor": 8})
    assert chosen.longwave["factor"] == 8.0
    longwave.set_policy(offline, "fixed", 8.0)
    try:
        expected = generated(offline, talking, ids, 12)
    finally:
        longwave.set_policy(offline, "fit")
    assert chosen.choices[0].token_ids == expected != by_length.choices[0].token_ids
    again = ask(client, ids)  # the next request is back at its own t
    assert again.choices[0].token_ids == by_length.choices[0].token_ids and again.longwave["factor"] == 112 / 64


def test_a_seed_draws_what_it_draws_offline(client: openai.OpenAI, offline: Any, talking: Any) -> None:
    ids, how = prompt_of(100), {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    expected = generated(offline, talking, ids, 12, **how)
    assert ask(client, ids, **how).choices[0].token_ids == expected == ask(client, ids, **how).choices[0].token_ids
    drawn = {tuple(ask(client, ids, temperature=1).choices[0].token_ids) for _ in range(3)}
    assert len(drawn) > 1  # without one, every request draws anew


def test_several_prompts_each_at_its_own_t(client: openai.OpenAI, offline: Any, talking: Any) -> None:
    prompts = [prompt_of(10), prompt_of(300), prompt_of(60)]
    found = ask(client, prompts)
    assert found.longwave == {"factor": 312 / 64, "factors": [1.0, 312 / 64, 72 / 64]}
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    for ids, choice in zip(prompts, found.choices, strict=True):
        assert choice.token_ids == generated(offline, talking, ids, 12)
    texts = ask(client, ["One text", "and another."])
    assert [choice.prompt_token_ids for choice in texts.choices] == [
        talking("One text")["input_ids"], talking("and another.")["input_ids"],
    ]  # fmt: skip


def test_a_chat_goes_through_the_template(client: openai.OpenAI, offline: Any, talking: Any) -> None:
    messages: Any = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a rope?"}]},
    ]
    ids = talking("<system>Answer.\n<user>What is a rope?\n<a>")["input_ids"]
    found = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=9, temperature=0)
    assert found.choices[0].message.content == talking.decode(generated(offline, talking, ids, 9))
    assert found.choices[0].message.role == "assistant" and found.usage.prompt_tokens == len(ids)


def test_without_max_tokens_the_default_counts_and_not_the_largest(client: openai.OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt="hi", temperature=0)
    assert found.longwave["factor"] == (2 + 100) / L
    nearly = client.completions.create(model="tiny", prompt=prompt_of(1020), temperature=0)
    assert nearly.longwave["factor"] == 16.0 and nearly.usage.completion_tokens <= 4


@pytest.mark.parametrize("length", [30, 400])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, length: int) -> None:
    ids = prompt_of(length)
    whole = ask(client, ids, 60)
    chunks = list(
        client.completions.create(
            model="tiny", prompt=ids, max_tokens=60, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len(chunks) > 10 and all(chunk.longwave == whole.longwave for chunk in chunks)


def test_a_chat_streams_the_same_text(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Tell me of ropes."}]
    how: Any = {"model": "tiny", "messages": messages, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**how)
    first, *chunks = client.chat.completions.create(**how, stream=True)
    assert first.choices[0].delta.role == "assistant" and first.usage is None
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    ids = prompt_of(30)
    text = ask(client, ids, 60).choices[0].text
    found = re.compile(r"[^\ufffd]{2}").search(text, 10)
    assert found is not None
    stop = found[0]
    expected = text[: text.index(stop)]
    found = ask(client, ids, 60, stop=["never there", stop])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (expected, "stop")
    assert found.usage.completion_tokens < 60
    chunks = client.completions.create(model="tiny", prompt=ids, max_tokens=60, temperature=0, stream=True, stop=stop)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_the_end_token_stops_and_is_no_text(client: openai.OpenAI, offline: Any, talking: Any) -> None:
    seeds = (seed for seed in range(60) if generated(offline, talking, prompt_of(20, seed), 40)[-1] == 0)
    ids = prompt_of(20, next(seeds))
    found = ask(client, ids, 40)
    count = found.usage.completion_tokens
    assert found.choices[0].finish_reason == "stop" and found.choices[0].token_ids[-1] == 0 and count < 40
    assert "Ā" not in found.choices[0].text
    last = ask(client, ids, count)  # where max_tokens ends it as well
    assert last.choices[0].finish_reason == "stop"
    assert ask(client, ids, count - 1).choices[0].finish_reason == "length"


def at_once(client: openai.OpenAI, offline: Any, talking: Any, count: int) -> None:
    """Prompts of half of L and of eight times L at the same time, some streamed: every answer is its own."""
    lengths = [(L // 2 if number % 2 else 8 * L) - number % 7 for number in range(count)]
    prompts = [prompt_of(length, number) for number, length in enumerate(lengths)]

    def one(number: int) -> tuple[str, float]:
        if number % 3:
            found = ask(client, prompts[number], 8)
            return found.choices[0].text, found.longwave["factor"]
        chunks = list(
            client.completions.create(model="tiny", prompt=prompts[number], max_tokens=8, temperature=0, stream=True)
        )
        return "".join(chunk.choices[0].text for chunk in chunks), chunks[0].longwave["factor"]

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(one, range(count)))
    for prompt, (text, factor) in zip(prompts, answers, strict=True):
        assert factor == max(1.0, (len(prompt) + 8) / L)
        expected = generated(offline, talking, prompt, 8)
        assert text == talking.decode(expected, skip_special_tokens=True)


def test_short_and_long_requests_at_once(client: openai.OpenAI, offline: Any, talking: Any) -> None:
    at_once(client, offline, talking, 24)


@pytest.mark.slow
def test_two_hundred_requests_at_once(client: openai.OpenAI, offline: Any, talking: Any) -> None:
    at_once(client, offline, talking, 200)
