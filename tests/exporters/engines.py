"""Exports of small random models in the engines that are installed; the docs page and the tests share the models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from test_gguf import SIZES, make_model
from transformers import AutoTokenizer, PreTrainedModel

import longwave
from longwave.exporters import Exporter
from longwave.exporters.base import EngineMissing
from longwave.exporters.opening import open_source
from longwave.exporters.source import Source
from longwave.exporters.verify import Agreement, passages, verify

DEMO = Path(longwave.__file__).parent / "demo/model"
FACTOR = 4.0
TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "ministral", "exaone4", "seed_oss", "helium", "ernie4_5",
    "gemma", "falcon", "gpt_neox", "gemma2", "cohere", "glm4", "olmo2", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
FIELDS = {
    "exaone4": {"layer_types": ["full_attention"] * 2},
    "ministral": {"sliding_window": 512},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gpt_neox": {"attention_bias": True},
}
METHODS = ("clex", "yarn", "ntk")


@dataclass(frozen=True)
class Run:
    """One export in one engine; `reason` where there is none."""

    target: str
    model_type: str
    method: str
    agreement: Agreement | None = None
    control: Agreement | None = None
    reason: str = ""


def run_engines(exporters: Iterable[Exporter], scratch: Path) -> Iterator[Run]:
    """Every exporter on every type and method, with a control whose factors are 1."""
    for exporter in exporters:
        try:
            exporter.engine()
        except EngineMissing as error:
            yield Run(exporter.name, "", "", reason=str(error))
            continue
        for model_type in TYPES:
            for method in METHODS:
                yield _run(exporter, model_type, method, scratch / exporter.name / model_type / method)


def _run(exporter: Exporter, model_type: str, method: str, folder: Path) -> Run:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    try:
        model, source = _saved(model_type, method, folder / "own")
        snapshot = source.snapshot(FACTOR)
        exporter.plan(source, snapshot)
    except ValueError as error:
        return Run(exporter.name, model_type, method, reason=str(error))
    control = None
    agreement = _agreement(exporter, model, source, folder / "out")
    if method == "clex":
        control = _agreement(exporter, model, source, folder / "ones", ones=True)
    return Run(exporter.name, model_type, method, agreement, control)


def _saved(model_type: str, method: str, folder: Path) -> tuple[PreTrainedModel, Source]:
    size = {} if model_type in ("phi3", "gpt_neox", "falcon", "granite", "qwen2") else {"head_dim": 16}
    model = make_model(model_type, **(size | FIELDS.get(model_type, {})))
    log_n = None if model_type != "falcon" else False  # whose attention cannot have it
    longwave.extend(model, method, max_factor=FACTOR, log_n=log_n, original_length=SIZES["max_position_embeddings"])
    for rotary in longwave.rotaries(model):
        for parameter in rotary.trajectory.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    longwave.save(model, folder, tokenizer=AutoTokenizer.from_pretrained(DEMO))
    return model.eval(), open_source(folder)


def _agreement(
    exporter: Exporter, model: PreTrainedModel, source: Source, folder: Path, *, ones: bool = False
) -> Agreement:
    snapshot = source.snapshot(FACTOR)
    if ones:
        snapshot = replace(snapshot, factors=torch.ones_like(snapshot.factors), inv_freq=source.rope.inv_freq)
    folder.mkdir()
    precise = "f32" if "f32" in exporter.quantizations else "float32"
    exporter.plan(source, snapshot, precise).write(folder)
    return verify(exporter, folder, model, FACTOR, passages(source.tokenizer, 256, 100), new_tokens=8)
