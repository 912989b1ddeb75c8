"""Every bad request is answered with one sentence that names what is wrong, and nothing is silently ignored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from servers import Running, build, running

KEY = "a secret"
HTTP = httpx2.Client(timeout=60)  # making one takes longer than a request


def send(server: Running, body: Any, path: str = "/v1/completions", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTP.post(f"{server.url}{path}", content=content, headers={"content-type": "application/json"} | headers)


def refused(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error, which is one or two sentences."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", "...")) and "\n" not in error["message"] and len(error["message"]) <= 400
    return error


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"max_tokens": "9"}, "max_tokens", "max_tokens must be a whole number, got '9'"),
        ({"max_tokens": True}, "max_tokens", "max_tokens must be a whole number"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
        ({"temperature": -1}, "temperature", "temperature must be between 0 and 2"),
        ({"temperature": 1e-40}, "temperature", "temperature must be 0, or from 1e-08 to 2"),
        ({"top_p": 0}, "top_p", "top_p must be above 0"),
        ({"seed": -1}, "seed", "seed must be between 0 and"),
        ({"seed": 2**40}, "seed", "seed must be between 0 and"),
        ({"stream": 1}, "stream", "stream must be true or false"),
        ({"stop": ""}, "stop", "stop must be a text, or a list of at most 4 texts, none empty"),
        ({"stop": ["a"] * 5}, "stop", "stop must be"),
        ({"stop": [1]}, "stop", "stop must be"),
        ({"stream_options": {"obfuscation": 1}}, "stream_options", "stream_options must be"),
        ({"logprobs": 6}, "logprobs", "logprobs must be between 0 and 5"),
        ({"logprobs": 1, "stream": True}, "logprobs", "not supported with stream"),
        ({"return_token_ids": True, "stream": True}, "return_token_ids", "not supported with stream"),
        ({"rope_factor": 17}, "rope_factor", "rope_factor must be between 1 (6 tokens) and 16, got 17"),
        ({"rope_factor": 0.5}, "rope_factor", "rope_factor must be a number >= 1"),
        ({"rope_factor": 1.5, "max_tokens": 200}, "rope_factor", "must be between 3.14062 (201 tokens) and 16"),
        ({"max_tokens": 1024}, "max_tokens", "1 tokens of prompt and 1024 of answer are asked for; the model reads"),
        ({"prompt": [1] * 1024}, None, "1024 tokens of prompt and 5 of answer are asked for"),
        ({"prompt": None}, "prompt", "prompt is missing"),
        ({"prompt": ""}, "prompt", "prompt is empty"),
        ({"prompt": []}, "prompt", "prompt must be a text"),
        ({"prompt": ["a", 1]}, "prompt", "prompt must be a text"),
        ({"prompt": [1, "a"]}, "prompt", "prompt must be a text"),
        ({"prompt": {"text": "a"}}, "prompt", "prompt must be a text"),
        ({"prompt": [[1], []]}, "prompt", "prompt must be a text"),
        ({"prompt": [256]}, "prompt", "the token id 256; ids are from 0 to 255"),
        ({"prompt": [-1]}, "prompt", "the token id -1"),
        ({"prompt": [True]}, "prompt", "prompt must be a text"),
        ({"prompt": ["a"] * 300}, None, "300 prompts are more than the 256 that may wait"),
        ({"n": 2}, "n", "n is not supported other than as 1"),
        ({"n": True}, "n", "n is not supported other than as 1"),
        ({"best_of": 3}, "best_of", "best_of is not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format is not supported"),
        ({"logit_bias": {"5": -100}}, "logit_bias", "logit_bias is not supported"),
        ({"presence_penalty": 0.1}, "presence_penalty", "presence_penalty is not supported"),
        ({"echo": True}, "echo", "echo is not supported"),
        ({"suffix": "x"}, "suffix", "suffix is not supported"),
        ({"top_k": 5}, "top_k", "top_k is not supported"),
        ({"max_token": 5}, "max_token", "max_token is not supported. Leave it out."),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_field_is_refused_by_name(server: Running, more: dict[str, Any], param: str | None, message: str) -> None:
    error = refused(send(server, {"prompt": "a", "max_tokens": 5} | more), 400)
    assert message in error["message"] and error["param"] == param and error["type"] == "invalid_request_error"


def test_fields_that_change_nothing_are_taken(server: Running) -> None:
    plain = {"prompt": "a", "max_tokens": 5, "temperature": 0}
    harmless = {
        "user": "me", "n": 1, "best_of": 1, "logit_bias": {}, "presence_penalty": 0.0, "echo": False, "suffix": None,
        "stop": None, "response_format": {"type": "text"}, "metadata": {"a": "b"}, "top_k": -1, "model": "tiny",
        "max_completion_tokens": 5, "tools": [], "stream": None,
    }  # fmt: skip
    first, second = send(server, plain), send(server, plain | harmless)
    assert second.status_code == 200, second.text
    assert first.json()["choices"] == second.json()["choices"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages is missing"),
        ([], "messages must be a list of at least one message"),
        ("hi", "messages must be a list"),
        (["hi"], "messages[0] must be an object with role and content"),
        ([{"role": "tool", "content": "x"}], "role of messages[0] must be one of system, developer"),
        ([{"role": "user"}], "content of messages[0] must be a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content of messages[0] must be a text"),
        ([{"role": "user", "content": "x", "name": "me"}], "name of messages[0] is not supported"),
        ([{"role": "assistant", "content": "x", "tool_calls": [1]}], "tool_calls of messages[0] is not supported"),
    ],
    ids=str,
)
def test_messages_are_refused(server: Running, messages: Any, message: str) -> None:
    error = refused(send(server, {"messages": messages}, "/v1/chat/completions"), 400)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "not valid JSON"),
        (b"[" * 100_000, "too deep"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[1]", "must be a JSON object, got list"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature must be between 0 and 2"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_body(server: Running, body: bytes, message: str) -> None:
    assert message in refused(send(server, body), 400)["message"]


def test_wrong_model_path_method_and_type(server: Running, client: openai.OpenAI) -> None:
    error = refused(send(server, {"model": "gpt-4", "prompt": "a"}), 404)
    assert error["code"] == "model_not_found" and "'tiny'" in error["message"]
    with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
        client.models.retrieve("other")
    refused(HTTP.get(f"{server.url}/v1/engines"), 404)
    wrong = HTTP.get(f"{server.url}/v1/completions")
    assert "Use POST" in refused(wrong, 405)["message"] and wrong.headers["allow"] == "POST"
    refused(HTTP.post(f"{server.url}/v1/completions", content=b"{}", headers={"content-type": "text/plain"}), 415)


def test_the_models_and_the_state(server: Running, client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "tiny" and client.models.retrieve("tiny") == model
    assert model.longwave == {"original_length": 64, "max_length": 1024, "max_factor": 16.0}
    assert HTTP.get(f"{server.url}/health").json() == {"status": "ok"}


def test_the_openai_client_tells_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the model reads 1024, the answer's included") as found:
        client.completions.create(model="tiny", prompt="a", max_tokens=5000)
    assert (found.value.code, found.value.param) == ("context_length_exceeded", "max_tokens")


@pytest.fixture(scope="module")
def locked(tokenizer: Any) -> Iterator[Running]:
    """A server with a key and small bodies, of a plain model without a chat template."""
    with running(build(), tokenizer, api_key=KEY, max_body=4096) as found:
        yield found


def test_a_key(locked: Running) -> None:
    for given in ("wrong", "a", KEY.upper(), f"{KEY} {KEY}"):
        for path in ("/v1/completions", "/v1/models", "/metrics", "/nowhere"):
            response = HTTP.get(f"{locked.url}{path}", headers={"authorization": f"Bearer {given}"})
            assert refused(response, 401)["code"] == "invalid_api_key"
    assert refused(HTTP.get(f"{locked.url}/v1/models"), 401)
    assert refused(HTTP.get(f"{locked.url}/v1/models", headers={"authorization": KEY}), 401)
    assert HTTP.get(f"{locked.url}/health").status_code == 200
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        locked.client(api_key="wrong").models.list()
    found = locked.client(api_key=KEY).completions.create(model="tiny", prompt="a", max_tokens=2)
    assert found.longwave["factor"] == 1.0


@pytest.mark.parametrize("size", [4097, 60_000, 5_000_000])
def test_a_body_that_is_too_large(locked: Running, size: int) -> None:
    body = b'{"prompt": "' + b"a" * size + b'"}'
    error = refused(send(locked, body, authorization=f"Bearer {KEY}"), 413)
    assert "larger than the 4096 bytes allowed" in error["message"]
    chunked = HTTP.post(
        f"{locked.url}/v1/completions", content=iter([body[:9000], body[9000:]]),
        headers={"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )  # fmt: skip
    refused(chunked, 413)


def test_a_plain_model_and_no_template(locked: Running) -> None:
    client = locked.client(api_key=KEY)
    with pytest.raises(openai.BadRequestError, match=r"has no chat template. Use /v1/completions"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="the model reads 64"):
        client.completions.create(model="tiny", prompt="a" * 60, max_tokens=5)
    with pytest.raises(openai.BadRequestError, match="rope_factor must be between 1 "):
        client.completions.create(model="tiny", prompt="a", max_tokens=5, extra_body={"rope_factor": 2})
