"""Text from files and folders, and the token stream that training and evaluation cut their windows from."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow.parquet
import torch
from datasets.fingerprint import Hasher
from torch import Tensor

from longwave.io import check_data, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JSON_LINES = {".jsonl", ".ndjson"}
PARQUET = {".parquet"}
FEATURES = datasets.Features({"text": datasets.Value("string")})
TOKENS = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})


def data_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files that `paths` stand for, sorted within each folder.

    Folders are searched recursively; hidden files and binary ones (a cover image beside a book) are
    passed over there. Text in another encoding than UTF-8 is not: reading it is an error.

    Raises:
        ValueError: for a path that does not exist, or if nothing is left.
    """
    named = check_data(paths)
    found: list[Path] = []
    for path in named:
        if path.is_file():
            found.append(path)
            continue
        inside = (file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path)))
        found += [file for file in inside if file.suffix in PARQUET or not _is_binary(file)]
    if not found:
        where = ", ".join(map(str, named)) or "nothing"
        raise ValueError(f"no text, jsonl or parquet file in the data given ({where}).")
    return list(dict.fromkeys(found))


def data_hashes(paths: Iterable[Path | str]) -> dict[str, str]:
    """SHA-256 of every data file, by its path: what a training record says about its data."""
    return {str(file): sha256(file) for file in data_files(paths)}


def read_documents(paths: Iterable[Path | str]) -> datasets.Dataset:
    """Documents as a `datasets.Dataset` with one column, `text`.

    A text file (any suffix, UTF-8) is one document, a jsonl line or a parquet row another, read from
    its field `text`. Empty documents are left out. The result is memory-mapped from the cache of
    `datasets`, under a key made of the files' contents: an edited file is read again.

    Raises:
        ValueError: if a path is missing, a file is not UTF-8 or has no field `text`, or no document is left.
    """
    hashes = data_hashes(paths)
    files = [Path(name) for name in hashes]
    if not any(True for _ in _documents(files)):
        raise ValueError(f"the data holds no text: {len(files)} files, all empty ({files[0]}, ...).")
    arguments = {"files": files, "hashes": list(hashes.values())}
    with _progress_bars(False):
        try:
            return datasets.Dataset.from_generator(_documents, features=FEATURES, gen_kwargs=arguments)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):  # ours, from deep inside the builder
                raise error.__cause__ from None
            raise


def token_stream(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False) -> Tensor:
    """All documents as one sequence of token ids, each document followed by the end-of-text token.

    Tokenised through `datasets.map` and cached under the documents' and the tokenizer's contents.

    Returns:
        int64, shape [tokens].
    """
    return stream_and_starts(documents, tokenizer, progress=progress)[0]


def stream_and_starts(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, *, progress: bool = False
) -> tuple[Tensor, list[int]]:
    """The `token_stream` of documents, and the place in it where each of them starts."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    tail = [] if end is None else [end]

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)
        return {"input_ids": [row + tail for row in ids["input_ids"]]}

    # A fast tokenizer's own hash changes when it is used, which would miss the cache every time.
    state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else Hasher.hash(tokenizer)
    with _progress_bars(progress):
        tokens = documents.map(
            encode,
            batched=True,
            batch_size=64,
            remove_columns=documents.column_names,
            features=TOKENS,
            new_fingerprint=Hasher.hash([documents._fingerprint, state, tail]),
            desc="tokenising",
        )
    chunks = tokens.data.column("input_ids").chunks
    stream = np.concatenate([np.empty(0, np.int32), *(chunk.flatten().to_numpy() for chunk in chunks)])
    sizes = [size for chunk in chunks for size in chunk.value_lengths().to_pylist()]
    return torch.from_numpy(stream.astype(np.int64)), [0, *accumulate(sizes)][: len(sizes)]


def _documents(files: Sequence[Path], hashes: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Non-empty documents of `files`; `hashes` only makes the cache key depend on their contents."""
    for file in files:
        for text in _texts(file):
            if text and not text.isspace():
                yield {"text": text}


def _texts(file: Path) -> Iterator[str]:
    if file.suffix in PARQUET:
        yield from _parquet_texts(file)
        return
    try:
        if file.suffix not in JSON_LINES:
            text = file.read_text("utf-8-sig")
            if "\0" in text:  # valid UTF-8, yet no text: an archive or an array that happens to decode
                raise ValueError(f"data {file} is not text: it holds NUL bytes.")
            yield text
            return
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_text(file, number, line)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data {file} is not UTF-8 text ({error.reason} at byte {error.start}). Convert or remove it."
        ) from None


def _json_text(file: Path, number: int, line: str) -> str:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"data {file}, line {number}: not JSON ({error.msg}).") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        has = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"data {file}, line {number}: expected an object with a string `text`, got {has}.")
    return text


def _parquet_texts(file: Path) -> Iterator[str]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"data {file} is not a parquet file ({str(error).splitlines()[0]}).") from None
    if "text" not in table.schema_arrow.names:
        raise ValueError(f"data {file} has no column `text`; it has {', '.join(table.schema_arrow.names)}.")
    for batch in table.iter_batches(columns=["text"]):
        yield from (value for value in batch.column(0).to_pylist() if value)


def _is_binary(file: Path) -> bool:
    """NUL bytes in the first 8 KiB. Bytes that are not UTF-8, or begin as UTF-16, may be a book all the same."""
    with file.open("rb") as handle:
        head = handle.read(8192)
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Show or hide the bars of `datasets` for a while: its switch is global."""
    hidden_before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if hidden_before else datasets.enable_progress_bars)()
