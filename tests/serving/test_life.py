"""The life of a server: a queue with an end, clients that go away, counts, and a stop that loses nothing."""

from __future__ import annotations

import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
import torch
from servers import Running, build, running, until

import longwave
from longwave.serving.errors import ApiError

LONG = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1000, "temperature": 0}


@pytest.fixture
def small(talking: Any) -> Any:
    """A server whose queue has two places, of a model that never ends an answer itself."""
    model = longwave.extend(build(), "yarn", max_factor=16)
    model.generation_config.eos_token_id = None
    with running(model, talking, queue=2) as found:
        yield found


def busy(server: Running) -> bool:
    return server.service.worker.running is not None


def test_a_full_queue_refuses_and_keeps_what_waits(small: Running) -> None:
    client, worker = small.client(timeout=60), small.service.worker
    short = {**LONG, "max_tokens": 300}
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.completions.create, **short)
        until(lambda: busy(small))
        second = [pool.submit(client.completions.create, **short) for _ in range(2)]
        until(lambda: len(worker.waiting) == 2)
        with pytest.raises(openai.RateLimitError, match="the queue is full: 2 prompts wait, of at most 2"):
            client.completions.create(**LONG)
        assert httpx2.get(f"{small.url}/health").status_code == 200  # the event loop is free
        assert {each.result().choices[0].text for each in (first, *second)} == {first.result().choices[0].text}
        assert first.result().usage.completion_tokens == 300
    assert small.metric('requests_total{status="429"}') == 1
    assert small.metric('requests_total{status="200"}') == 3
    assert small.metric("prompt_tokens_total") == 9 and small.metric("generated_tokens_total") == 900


def test_a_client_that_closes_a_stream_ends_its_generation(small: Running) -> None:
    stream = small.client().completions.create(**LONG, stream=True)
    next(iter(stream))
    assert busy(small)
    stream.close()
    until(lambda: not busy(small))
    assert 1 <= small.metric("generated_tokens_total") < 900


def test_a_client_that_hangs_up_frees_its_place(small: Running) -> None:
    """Neither answer is wanted any more: the one that runs, and the one that waits."""
    worker = small.service.worker
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(small.client(timeout=1.0).completions.create, **LONG) for _ in range(2)]
        until(lambda: busy(small) and len(worker.waiting) == 1)
        for each in asked:
            with pytest.raises(openai.APITimeoutError):
                each.result()
    until(lambda: worker.idle)
    assert small.metric("generated_tokens_total") < 900
    until(lambda: small.metric('requests_total{status="499"}') == 2)


def test_SIGTERM_finishes_what_was_accepted(talking: Any) -> None:
    with running(longwave.extend(build(), "yarn", max_factor=16), talking) as server, ThreadPoolExecutor(3) as pool:
        client = server.client()
        how = {**LONG, "max_tokens": 200}
        whole = client.completions.create(**how)
        asked = [pool.submit(client.completions.create, **how) for _ in range(2)]
        stream = client.completions.create(**how, stream=True)
        first = next(iter(stream))
        until(lambda: busy(server))
        server.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.InternalServerError, match="the server is shutting down") as found:
            client.completions.create(**how)
        assert found.value.status_code == 503
        assert httpx2.get(f"{server.url}/health").json() == {"status": "draining"}
        text = first.choices[0].text + "".join(chunk.choices[0].text for chunk in stream)
        assert {text, *(each.result().choices[0].text for each in asked)} == {whole.choices[0].text}
        server.thread.join(20)
        assert not server.thread.is_alive()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_a_drain_has_a_limit(talking: Any) -> None:
    model = longwave.extend(build(), "yarn", max_factor=16)
    model.generation_config.eos_token_id = None
    with running(model, talking, drain=0.2) as server, ThreadPoolExecutor(2) as pool:
        asked = pool.submit(server.client().completions.create, **LONG)
        stream = iter(server.client().completions.create(**LONG, stream=True))
        until(lambda: busy(server) and len(server.service.worker.waiting) == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            asked.result()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_a_request_that_fails_is_answered_and_the_next_one_works(
    talking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer that fails at one length: as a fault of the model would, and as a full memory does."""
    model = longwave.extend(build(), "yarn", max_factor=16)
    errors = {77: RuntimeError("a layer broke"), 78: torch.OutOfMemoryError("CUDA out of memory.")}

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        if (error := errors.get(kwargs["position_ids"].shape[-1])) is not None:
            raise error

    model.model.layers[1].register_forward_pre_hook(fail, with_kwargs=True)
    with running(model, talking) as server:
        client = server.client()
        with pytest.raises(openai.InternalServerError, match=r"failed in the server \(RuntimeError\)"):
            client.completions.create(model="tiny", prompt=[1] * 77, max_tokens=5)
        assert "a request failed (RuntimeError: a layer broke)." in caplog.text
        with pytest.raises(openai.InternalServerError, match=r"memory does not suffice for 78 \+ 5 tokens"):
            client.completions.create(model="tiny", prompt=[1] * 78, max_tokens=5)
        with pytest.raises(openai.APIError, match="failed in the server"):
            list(client.completions.create(model="tiny", prompt=[1] * 77, max_tokens=5, stream=True))
        assert client.completions.create(model="tiny", prompt=[1] * 79, max_tokens=5).longwave["factor"] == 84 / 64


def test_metrics_are_of_the_format_and_tell_t(talking: Any) -> None:
    with running(longwave.extend(build(), "yarn", max_factor=12), talking) as server:
        client = server.client()
        for length in (10, 100, 700):
            client.completions.create(model="tiny", prompt=[1] * length, max_tokens=4)
        response = httpx2.get(f"{server.url}/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in response.text.splitlines():
            assert re.fullmatch(r'# (HELP|TYPE) longwave_\w+ .+|longwave_\w+(\{\w+="[\w.+]+"\})? [\d.]+', line), line
        counts = [server.metric(f'factor_bucket{{le="{bound}"}}') for bound in (1, 2, 4, 8, 12, "+Inf")]
        assert counts == [1, 2, 2, 2, 3, 3]
        assert server.metric("factor_sum") == pytest.approx(1 + 104 / 64 + 704 / 64)
        assert server.metric("running") == server.metric("queued") == 0


def test_places_are_taken_all_or_none(small: Running) -> None:
    worker, gate = small.service.worker, threading.Event()
    worker.run = lambda job: gate.wait(10)
    client = small.client()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(client.completions.create, **{**LONG, "prompt": [[1], [2], [3]]})
        with pytest.raises(openai.BadRequestError, match="3 prompts are more than the 2 that may wait"):
            asked.result()
        assert not worker.waiting
        with pytest.raises(ApiError):
            worker.check(3)
    gate.set()
