"""The token stream: one file that all processes map."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Tokenizer

from longwave.data import once
from longwave.data.documents import read_documents
from longwave.data.encoding import encoder
from longwave.data.tokens import TokenStream, stream_and_starts, tokenise


@pytest.fixture
def books(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"{n} sheep went up the hill. " * (n % 7 + 1)}) for n in range(300)]
    (tmp_path / "books.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path / "books.jsonl"


def test_a_stream_is_mapped_from_one_file(books: Path, tokenizer) -> None:
    documents = read_documents([books])
    stream = tokenise(documents, tokenizer)
    assert isinstance(stream.ids, np.memmap) and stream.ids.dtype == np.int32
    assert stream.file is not None and stream.file.is_file()
    expected = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 0] for text in documents["text"]]
    assert stream.ids.tolist() == list(chain.from_iterable(expected))
    assert stream.sizes.tolist() == [len(ids) for ids in expected]
    ids, starts = stream_and_starts(documents, tokenizer)
    assert ids.dtype == torch.long and torch.equal(ids, stream.tensor().long()) and starts == stream.starts.tolist()
    again = TokenStream.open(stream.file)
    assert np.array_equal(again.ids, stream.ids) and np.array_equal(again.starts, stream.starts)
    key = stream.file.stem.removeprefix("tokens-")
    assert not list(stream.file.parent.glob(f"cache-{key}*"))  # the ids lie there once


def test_documents_without_a_cache_have_their_tokens_in_memory(tokenizer) -> None:
    stream = tokenise(datasets.Dataset.from_dict({"text": ["ab", "c"]}), tokenizer)
    assert stream.file is None and len(stream.ids) == 5 and stream.starts.tolist() == [0, 3]


def test_any_number_of_processes_makes_the_same_stream(books: Path, tokenizer) -> None:
    documents = read_documents([books])
    one = tokenise(documents, tokenizer)
    before = one.ids.copy()
    assert one.file is not None
    one.file.unlink()
    three = tokenise(documents, tokenizer, processes=3)
    assert np.array_equal(three.ids, before) and np.array_equal(three.starts, one.starts)


def test_a_stream_that_was_not_finished_is_made_again(books: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = read_documents([books])
    real = os.replace

    def full(source: Path, target: Path) -> None:
        if str(target).endswith(".npy") and not str(target).endswith(".starts.npy"):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            tokenise(documents, tokenizer)
    folder = Path(documents.cache_files[0]["filename"]).parent
    assert not list(folder.glob(".tokens-*"))
    assert len(tokenise(documents, tokenizer).ids)


@pytest.mark.slow
def test_one_process_of_a_launch_works(tmp_path: Path) -> None:
    """Four processes of a launcher ask twice. Each answer was found once, and all have it."""
    code = """
import os, sys, time
from longwave.data.once import once_per_node
def find(what):
    with open(sys.argv[1], "a") as log:
        log.write(what)
    time.sleep(0.2)
    return {"found": what, "by": os.getpid()}
print([once_per_node(lambda: find("a")), once_per_node(lambda: find("b"))])
"""
    environment = os.environ | {"WORLD_SIZE": "4", "MASTER_PORT": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    log = tmp_path / "log"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(log)], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {each.communicate(timeout=120)[0] for each in started}
    assert [each.returncode for each in started] == [0] * 4
    assert log.read_text() == "ab" and len(answers) == 1


def test_a_single_process_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert once.once_per_node(lambda: 3) == 3
    assert not list(tmp_path.iterdir())


TEXTS = ["A town  by the sea.\n\n<s>[INST] «ça» 天地 🙂 </s>", "", " ", "<|endoftext|>x" * 3, "word " * 3000]


@pytest.mark.parametrize("name", ["stories260K/hf", "gpt2_tokenizer", "babyllama_tok105/hf"])
def test_ids_are_those_of_the_tokenizers_own_call(shared: Path, name: str) -> None:
    kind = GPT2Tokenizer if name.startswith("gpt2") else AutoTokenizer
    real = kind.from_pretrained(shared / "data" / "models" / name)
    assert real.is_fast
    for split in (False, True):
        real.split_special_tokens = split
        expected = real(TEXTS, add_special_tokens=False)["input_ids"]
        real(TEXTS, truncation=True, max_length=4, padding=bool(real.pad_token))  # leaves its mark
        assert encoder(real)(TEXTS) == expected
