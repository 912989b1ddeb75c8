"""Real servers on free ports, over a random model of two layers with L = 64 and a tokenizer of bytes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM

from longwave.extensions.decoding import Decoding, new_tokens
from longwave.serving.app import build_app
from longwave.serving.server import FLUSH, DrainingServer
from longwave.serving.service import Service
from longwave.serving.settings import ServeSettings
from longwave.serving.sockets import listen, url_of

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
L = 64


@dataclass
class Running:
    """A server in a thread of this process. The model waits at every step while `gate` is not set."""

    service: Service
    server: DrainingServer
    url: str
    thread: threading.Thread
    gate: threading.Event

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0} | options))

    def metric(self, name: str) -> float:
        worker = self.service.worker
        text = self.service.metrics.text(int(worker.running is not None), len(worker.waiting))
        return float(dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")[f"longwave_{name}"])


@contextmanager
def running(model: Any, tokenizer: Any, **settings: Any) -> Iterator[Running]:
    gate = threading.Event()
    gate.set()

    def wait(*given: Any) -> None:
        gate.wait(60)

    model.register_forward_pre_hook(wait)
    how = ServeSettings.create(**{"port": 0, "drain": 20} | settings)
    service, listener, heard = Service.of(model, tokenizer, "tiny", how), listen(how.host, 0), threading.Event()
    config = uvicorn.Config(
        build_app(service), http="h11", ws="none", lifespan="off", log_level="error", timeout_graceful_shutdown=FLUSH
    )
    server = DrainingServer(service, config, heard.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    url = url_of(listener)
    thread.start()
    assert heard.wait(20)
    try:
        yield Running(service, server, url, thread, gate)
    finally:
        gate.set()
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)  # at once
        thread.join(20)
        assert not thread.is_alive()
        assert service.worker.stop(20)


def until(true: Callable[[], Any], seconds: float = 10) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def build() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        head_dim=16, max_position_embeddings=L, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def generated(model: Any, tokenizer: Any, ids: list[int], most: int, **decoding: Any) -> list[int]:
    """New tokens of the stock `generate`, without a server."""
    how = Decoding(**{"temperature": 0.0} | decoding)
    torch.manual_seed(how.seed)
    return new_tokens(model, torch.tensor([ids]), most, how.arguments(tokenizer)).tolist()


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
