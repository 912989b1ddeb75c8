"""The life of a server: a queue with an end, clients that go away, counts, and a stop that loses nothing."""

from __future__ import annotations

import json
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
import torch
from servers import Running, build, running, until

import longwave

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
    client, worker, short = small.client(timeout=60), small.service.worker, {**LONG, "max_tokens": 20}
    with ThreadPoolExecutor(3) as pool:
        small.gate.clear()
        first = pool.submit(client.completions.create, **short)
        until(lambda: busy(small))
        second = [pool.submit(client.completions.create, **short) for _ in range(2)]
        until(lambda: len(worker.waiting) == 2)
        assert (small.metric("running"), small.metric("queued")) == (1, 2)
        with pytest.raises(openai.RateLimitError, match="the queue is full: 2 prompts wait, of at most 2"):
            client.completions.create(**short)
        assert httpx2.get(f"{small.url}/health").status_code == 200  # the event loop is free
        small.gate.set()
        assert {each.result().choices[0].text for each in (first, *second)} == {first.result().choices[0].text}
    assert first.result().usage.completion_tokens == 20
    assert small.metric('requests_total{status="429"}') == 1
    assert small.metric('requests_total{status="200"}') == 3
    assert small.metric("prompt_tokens_total") == 9 and small.metric("generated_tokens_total") == 60


def test_a_client_that_closes_a_stream_ends_its_generation(small: Running) -> None:
    stream = small.client().completions.create(**LONG, stream=True)
    next(iter(stream))
    small.gate.clear()
    assert busy(small)
    (job,) = [small.service.worker.running]
    stream.close()
    until(lambda: job is not None and job.cancelled)
    small.gate.set()
    until(lambda: small.service.worker.idle)
    assert 1 <= small.metric("generated_tokens_total") < 500


def test_a_client_that_hangs_up_frees_its_place(small: Running) -> None:
    """Neither answer is wanted any more: the one that runs, and the one that waits."""
    worker = small.service.worker
    small.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(small.client(timeout=1.0).completions.create, **LONG) for _ in range(2)]
        until(lambda: busy(small) and len(worker.waiting) == 1)
        for each in asked:
            with pytest.raises(openai.APITimeoutError):
                each.result()
    until(lambda: not worker.waiting and small.metric('requests_total{status="499"}') == 2)
    small.gate.set()
    until(lambda: worker.idle)
    assert small.metric("generated_tokens_total") <= 1
    assert small.client().completions.create(**{**LONG, "max_tokens": 2}).usage.completion_tokens == 2


def test_clients_that_close_at_once_leave_nothing_behind(small: Running) -> None:
    """A stream may end before its first event: nobody then reads its chunks to the end."""
    worker, (host, port) = small.service.worker, small.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    small.gate.clear()
    for _ in range(8):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
    until(lambda: sum(small.service.metrics.statuses.values()) == 8)
    until(lambda: not worker.waiting and (worker.running is None or worker.running.cancelled))
    small.gate.set()
    until(lambda: worker.idle)
    assert small.metric("generated_tokens_total") <= 1


def test_a_prompt_is_not_read_on_for_a_client_that_is_gone(talking: Any) -> None:
    model, sizes = longwave.extend(build(), "yarn", max_factor=16), []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        sizes.append(kwargs["position_ids"].shape[-1])

    model.model.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    with running(model, talking, prefill_chunk=16) as server:
        how: Any = {"model": "tiny", "prompt": [1] * 160, "max_tokens": 3}
        server.gate.clear()
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.5).completions.create(**how)
        (job,) = [server.service.worker.running]
        until(lambda: job is not None and job.cancelled)
        server.gate.set()
        until(lambda: server.service.worker.idle)
        assert sizes in ([], [16]) and server.metric("generated_tokens_total") == 0
        sizes.clear()
        assert server.client().completions.create(**how).usage.completion_tokens == 3
        assert sizes == [16] * 10 + [1, 1]


def test_SIGTERM_finishes_what_was_accepted(small: Running) -> None:
    client, how = small.client(), {**LONG, "max_tokens": 30}
    with ThreadPoolExecutor(2) as pool:
        whole = client.completions.create(**how)
        small.gate.clear()
        stream = client.completions.create(**how, stream=True)
        asked = [pool.submit(client.completions.create, **how) for _ in range(2)]
        until(lambda: busy(small) and len(small.service.worker.waiting) == 2)
        small.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.InternalServerError, match="the server is shutting down") as found:
            client.completions.create(**how)
        assert found.value.status_code == 503
        health = httpx2.get(f"{small.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        small.gate.set()
        text = "".join(chunk.choices[0].text for chunk in stream)
        assert {text, *(each.result().choices[0].text for each in asked)} == {whole.choices[0].text}
        small.thread.join(20)
        assert not small.thread.is_alive()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_a_drain_has_a_limit(talking: Any) -> None:
    model = longwave.extend(build(), "yarn", max_factor=16)
    with running(model, talking, drain=0.2) as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        stream = iter(server.client().completions.create(**LONG, stream=True))
        asked = pool.submit(server.client().completions.create, **LONG)
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
    worker, client = small.service.worker, small.client()
    with pytest.raises(openai.BadRequestError, match="3 prompts are more than the 2 that may wait"):
        client.completions.create(**{**LONG, "prompt": [[1], [2], [3]]})
    small.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        for count in (0, 1):
            pool.submit(client.completions.create, **{**LONG, "max_tokens": 2})
            until(lambda count=count: busy(small) and len(worker.waiting) == count)
        with pytest.raises(openai.RateLimitError, match="1 prompts wait, of at most 2"):
            client.completions.create(**{**LONG, "prompt": [[1], [2]]})
        assert len(worker.waiting) == 1
        small.gate.set()
