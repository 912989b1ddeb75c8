"""A server for all tests of this folder, and the same model apart from it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from servers import TEMPLATE, Running, build, running
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import longwave


@pytest.fixture(scope="session")
def talking(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer of bytes, with a chat template."""
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="Ā", bos_token="Ā")
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="session")
def offline() -> LlamaForCausalLM:
    """The same model apart from the server: what the server's answers have to equal."""
    return longwave.extend(build(), "yarn", max_factor=16, log_n=True)


@pytest.fixture(scope="session")
def server(talking: PreTrainedTokenizerFast) -> Iterator[Running]:
    with running(
        longwave.extend(build(), "yarn", max_factor=16, log_n=True), talking, queue=256, default_max_tokens=100
    ) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.client()
