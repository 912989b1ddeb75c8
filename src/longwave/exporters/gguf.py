"""GGUF, for llama.cpp and what is built on it: one file with the factors beside the weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longwave.exporters import llamacpp
from longwave.exporters.base import ROUNDING, Answer, EngineMissing, partial_heads, refuse_quantized, weight_notes
from longwave.exporters.gguf_layout import add_metadata, check_window, frequencies, layout_of
from longwave.exporters.gguf_tensors import Stream, find_tensors, stored_size
from longwave.exporters.gguf_tokenizer import NORMAL, Vocabulary, read_vocabulary
from longwave.exporters.source import Source
from longwave.trajectory import Snapshot

SHOWN = 8192  # the largest vocabulary that the engine is asked all log-probabilities of
TOP = 64  # of a larger one, the most likely


class GGUF:
    """Frequency factors as the tensor that llama.cpp knows from Llama 3.1, which conversion scripts leave out."""

    name = "gguf"
    summary = "one file for llama.cpp, Ollama and LM Studio"
    quantizations: tuple[str, ...] = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")

    def check(self, source: Source, snapshot: Snapshot) -> list[str]:
        _gguf()
        refuse_quantized(source, self.name)
        layout = layout_of(source)
        check_window(source, snapshot)
        frequencies(source, snapshot, layout)
        find_tensors(source, layout)
        vocabulary = _vocabulary(source)
        notes = [*weight_notes(source, kept=False), *vocabulary.notes, *partial_heads(source, snapshot)]
        if (name := vocabulary.file_name(_name(source))) != _name(source):
            notes.append(
                f"general.name is {name!r}, not {_name(source)!r}: llama.cpp decides by phi-3, phi3 or modern-bert in "
                "the name how it reads special tokens."
            )
        return notes

    def size(self, source: Source, quantize: str | None) -> int:
        kind = self._kind(quantize)
        return sum(stored_size(tensor, kind) for tensor in find_tensors(source, layout_of(source)))

    def tolerance(self, source: Source, quantize: str | None) -> float | None:
        return ROUNDING.get({"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(self._kind(quantize).name, ""))

    def write(self, source: Source, snapshot: Snapshot, folder: Path, quantize: str | None) -> None:
        gguf = _gguf()
        kind = self._kind(quantize)
        layout = layout_of(source)
        values = frequencies(source, snapshot, layout)
        tensors = find_tensors(source, layout)
        writer = gguf.GGUFWriter(folder / f"model-{kind.name}.gguf", layout.arch)
        try:
            add_metadata(writer, source, snapshot, values)
            full = kind == gguf.GGMLQuantizationType.F32
            writer.add_file_type(gguf.LlamaFileType["ALL_F32" if full else f"MOSTLY_{kind.name}"])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            vocabulary = _vocabulary(source)
            writer.add_name(vocabulary.file_name(_name(source)))
            vocabulary.add_to(writer)
            factors = {} if values.factors is None else dict.fromkeys(layout.factors, values.factors.float().numpy())
            for tensor, data in factors.items():
                writer.add_tensor_info(tensor, data.shape, data.dtype, data.nbytes)
            stream = Stream(writer, kind)
            for entry in tensors:
                stream.declare(entry)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for data in factors.values():
                stream.append([data])
            for entry in tensors:
                stream.write(entry)
            writer.flush()
            os.fsync(writer.fout[0].fileno())
        finally:
            writer.close()

    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        length, file = snapshot.max_length, f"{folder}/model-*.gguf"
        return f"""### llama.cpp

```
llama-server -m {file} -c {length} --port 8080
llama-cli -m {file} -c {length} -f prompt.txt
```

The file carries the frequencies: no `--rope-*` or `--yarn-*` option is needed, and none should be given. They are the
same for every length up to {length} tokens."""

    def engine(self) -> str:
        found = llamacpp.installed()
        if found is None:
            raise EngineMissing("llama.cpp is not installed here. pip install 'longwave[llamacpp]'")
        return f"llama.cpp (xllamacpp {found})"

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        """A token at a time, from the log-probabilities that the server shows.

        Its own choice would stop at an end of text, and it shows none for a token that ends inside a character: so
        its sampler is tied to a harmless token, which comes after the log-probabilities. Those are of the softmax
        over the whole vocabulary, however few of them are shown.
        """
        self.engine()
        file, size, harmless = _the_file(folder)
        shown = size if size <= SHOWN else TOP
        answers = []
        with llamacpp.served(file, max(map(len, prompts)) + new_tokens, exact=True) as address:
            for prompt in prompts:
                tokens: list[int] = []
                rows = np.full((new_tokens, size), np.nan, dtype=np.float32)
                for step in range(new_tokens):
                    answer = llamacpp.ask(
                        address, "/completion", prompt=[*prompt, *tokens], n_predict=1, n_probs=shown,
                        post_sampling_probs=False, temperature=0.0, cache_prompt=True, logit_bias=[[harmless, 1e9]],
                    )  # fmt: skip
                    top = answer["completion_probabilities"][0]["top_logprobs"]
                    tokens.append(int(top[0]["id"]))
                    rows[step, [entry["id"] for entry in top]] = [entry["logprob"] for entry in top]
                answers.append(Answer(tokens, rows))
        return answers

    def _kind(self, quantize: str | None) -> Any:
        name = quantize or self.quantizations[0]
        if name not in self.quantizations:
            raise ValueError(f"GGUF export has no quantization {name!r}. Available: {', '.join(self.quantizations)}.")
        return _gguf().GGMLQuantizationType[name.upper()]


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError("GGUF export needs the package gguf. pip install 'longwave[gguf]'") from None
    return gguf


def _vocabulary(source: Source) -> Vocabulary:
    ends = source.text_config.eos_token_id
    end = ends[0] if isinstance(ends, list) and ends else ends
    return read_vocabulary(source.tokenizer, source.text_config.vocab_size, end if isinstance(end, int) else None)


def _name(source: Source) -> str:
    return Path(source.path).resolve().name


def _the_file(folder: Path) -> tuple[Path, int, int]:
    """The folder's GGUF file, its number of tokens, and a token of plain text."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{folder} holds {len(files)} GGUF files, expected one.")
    fields = _gguf().GGUFReader(files[0]).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    texts = (i for i, token in enumerate(tokens) if types[i] == NORMAL and token.isascii() and token.isalnum())
    return files[0], len(tokens), next(texts)
