"""An export as llama.cpp serves it: passkeys over its OpenAI-compatible endpoint, against longwave itself.

    python runs/serving.py FOLDER [--factor 8] [--trials 20] [--quantize f16,q8_0] [--output DIR] [--json serving.json]

FOLDER is what `longwave train` wrote. Needs the extra `llamacpp`. Prompts go as text to /v1/completions of the server
with its default settings, so the tokenizer of the file is asked, too. Longwave answers the same texts at the same
fixed t, with per-query log-n as the constant that the export carries. The last row is a control: the same file with
all factors 1.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from longwave import load
from longwave.evaluation.templates import SHORT
from longwave.evaluation.trials import Prompts, Trial
from longwave.exporters.gguf import GGUF, llamacpp
from longwave.exporters.opening import open_source
from longwave.exporters.source import Source
from longwave.extensions.policy import frozen
from longwave.files import write_json
from longwave.provenance import versions


def own_answers(model: Any, tokenizer: Any, texts: list[str], trials: list[Trial], factor: float) -> list[str]:
    """Greedy answers of longwave, as text."""
    answers = []
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with frozen(model, factor):
        for text, trial in zip(texts, trials, strict=True):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            row = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=trial.answer, **options)
            answers.append(tokenizer.decode(row[0, ids.shape[1] :]))
    return answers


def served_answers(file: Path, length: int, texts: list[str], trials: list[Trial]) -> tuple[list[str], list[list[int]]]:
    """Greedy answers of the server, as text, and the tokens that it reads each prompt as."""
    answers, tokens = [], []
    with llamacpp.served(file, length) as address:
        for text, trial in zip(texts, trials, strict=True):
            fields = {"prompt": text, "max_tokens": trial.answer, "temperature": 0.0, "ignore_eos": True}
            answer = llamacpp.ask(address, "/v1/completions", model=file.stem, **fields)
            answers.append(answer["choices"][0]["text"])
            read = llamacpp.ask(address, "/tokenize", content=text, add_special=True, parse_special=True)
            tokens.append(read["tokens"])
    return answers, tokens


def exported(source: Source, factor: float, quantize: str, output: Path, *, control: bool = False) -> Path:
    """The file of one export."""
    snapshot = source.snapshot(factor)
    if control:
        snapshot = replace(snapshot, factors=torch.ones_like(snapshot.factors))
    folder = output / (f"{quantize}-control" if control else quantize)
    folder.mkdir(parents=True)
    GGUF().plan(source, snapshot, quantize).write(folder)
    return next(folder.glob("*.gguf"))


def measure(folder: str, factor: float, trials: int, kinds: list[str], output: Path) -> dict[str, Any]:
    """One row for each kind of export, and one for the control."""
    source = open_source(folder)
    model, tokenizer = load(folder).eval(), AutoTokenizer.from_pretrained(folder)
    length = source.snapshot(factor).max_length
    asked = Prompts(tokenizer, SHORT).trials(length, trials, 10, seed=0)
    texts = [tokenizer.decode(trial.ids[: -trial.answer]) for trial in asked]
    ours = own_answers(model, tokenizer, texts, asked, factor)
    rows = []
    for kind, control in [(kind, False) for kind in kinds] + [(kinds[0], True)]:
        file = exported(source, factor, kind, output, control=control)
        theirs, tokens = served_answers(file, length, texts, asked)
        rows.append(
            {
                "export": f"{kind}, factors 1" if control else kind,
                "megabytes": file.stat().st_size / 1e6,
                "same_prompt_tokens": sum(
                    found == tokenizer(text)["input_ids"] for found, text in zip(tokens, texts, strict=True)
                ),
                "same_answers": sum(a == b for a, b in zip(ours, theirs, strict=True)),
                "keys_found": sum(t.key in a for t, a in zip(asked, theirs, strict=True)),
            }
        )
    found = sum(trial.key in answer for trial, answer in zip(asked, ours, strict=True))
    return {"factor": factor, "length": length, "trials": trials, "longwave_keys_found": found, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--factor", type=float, default=8.0)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--quantize", default="f16,q8_0")
    parser.add_argument("--output", type=Path, help="keep the exports here")
    parser.add_argument("--json", type=Path, default=Path("serving.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(
            options.folder, options.factor, options.trials, options.quantize.split(","), options.output or Path(scratch)
        )
    result["engine"] = GGUF().engine()
    print(f"{options.trials} prompts of {result['length']} tokens; longwave finds {result['longwave_keys_found']} keys")
    print("export             same prompt tokens  same answers  keys found      MB")
    for row in result["rows"]:
        print(
            f"{row['export']:<18} {row['same_prompt_tokens']:>18}  {row['same_answers']:>12}  "
            f"{row['keys_found']:>10}  {row['megabytes']:>6.1f}"
        )
    write_json(options.json, {"folder": Path(options.folder).name, **result, "versions": versions()})


if __name__ == "__main__":
    main()
