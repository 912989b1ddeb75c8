"""`torchrun shared_rows.py OUTPUT CASE...`: rows that the processes share against whole rows in one process.

Writes a JSON object: case -> the loss and its difference, and for each part of the model the largest difference of a
gradient in units of the part's largest gradient.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tiny import tiny_model
from torch import Tensor, distributed
from transformers import PreTrainedModel

import longwave
from longwave.extensions.adapter import LoRA
from longwave.extensions.documents import documents_apart, prepare_documents
from longwave.extensions.handle import extension
from longwave.extensions.shards import prepare_shards, rows_shared
from longwave.extensions.steering import count_keys
from longwave.training.batches import MicroBatches, PackedRows
from longwave.training.documents import Marks
from longwave.training.draw import LengthSampler
from longwave.training.loss import loss_in_blocks
from longwave.training.ulysses import Ulysses

ROW, L = 96, 64
T_OF_SHARD = "t of the shard"  # the one case that must not be alike
DOCUMENTS = [0, 40, 150, 200, 290]  # where they start


@dataclass(frozen=True)
class Case:
    """A model, and how it is run.

    Arguments:
        family: of `tiny_model`.
        method: of `extend`.
        parts: further arguments of `extend`.
        rule: where the tokens of a row stand.
        documents: whether rows hold several.
        by_keys: whether log-n counts keys.
        implementation: of the attention.
        checkpointing, blocks: whether layers are run again, and the loss is in blocks.
        drawn: whether t is the drawn one, as training sets it.
    """

    family: str = "llama"
    method: str = "clex"
    parts: dict[str, Any] | None = None
    rule: str = "chunks"
    documents: bool = False
    by_keys: bool = True
    implementation: str = "sdpa"
    checkpointing: bool = False
    blocks: bool = False
    drawn: bool = True


LEARNED = {"head_scalars": True, "adapter": LoRA(4, 4.0)}
CASES = {
    **{f"{method} log-n {log_n}": Case(method=method, parts={"log_n": log_n})
       for method in ("clex", "ntk", "yarn", "two-band", "clex+two-band") for log_n in (0.0, 1.0)},
    **{method: Case(method=method) for method in ("dca", "self-extend", "leaky-rerope", "streaming-llm")},
    "positions": Case(parts={"log_n": 1.0}, by_keys=False),
    "positions, bands": Case(method="two-band", parts={"log_n": 1.0}, by_keys=False),
    "within L": Case(method="clex+two-band", rule="none"),
    "scalars and LoRA": Case(method="two-band", parts=LEARNED),
    "documents": Case(parts={"log_n": 1.0}, documents=True),
    "documents, bands": Case(method="clex+two-band", parts=LEARNED, documents=True),
    "documents, no log-n": Case(parts={"log_n": 0.0}, documents=True),
    "eager": Case(implementation="eager", documents=True),
    "checkpointing": Case(method="clex+two-band", parts=LEARNED, checkpointing=True),
    "blocks": Case(parts={"log_n": 1.0}, documents=True, blocks=True),
    "neox": Case(family="gpt_neox", parts={"log_n": 1.0}),
    "neox, bands": Case(family="gpt_neox", method="two-band", parts=LEARNED),
    "windows": Case(family="mistral", parts={"log_n": 0.0}, documents=True),
    "windows and all": Case(family="gemma2", parts={"log_n": 1.0}, implementation="eager"),
    T_OF_SHARD: Case(drawn=False),
}  # fmt: skip


def model_of(case: Case, count: int) -> PreTrainedModel:
    """The model of a case, every learned parameter off its start, as training has it."""
    torch.manual_seed(0)
    model = tiny_model(case.family)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # else attention is nearly uniform, and no loss tells where it looks
            torch.nn.init.normal_(parameter, std=0.1)
    model.set_attn_implementation(case.implementation)
    longwave.extend(model, case.method, max_factor=8, original_length=L, beyond="clamp", **(case.parts or {}))
    for parameter in (p for found in extension(model).learned.values() for p in found):
        torch.nn.init.normal_(parameter, std=0.3)
    count_keys(model, case.by_keys)
    prepare_documents(model)
    prepare_shards(model, count)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def batches_of(case: Case, shards: int) -> MicroBatches:
    tokens = torch.randint(0, 128, (8, ROW), generator=torch.Generator().manual_seed(1))
    sampler = LengthSampler(L, 8.0, positions=case.rule, chunks=3, least_factor=3.0, seed=2)
    if case.rule == "none":
        sampler = LengthSampler(ROW, 8.0, short_share=1.0, seed=2)
    marks = Marks(np.asarray(DOCUMENTS)) if case.documents else None
    return MicroBatches(PackedRows(tokens, 4, 5, marks), sampler, size=4, shards=shards)


def loss_of(model: PreTrainedModel, batch: dict[str, Any], case: Case, ulysses: Ulysses | None, items: Any) -> Tensor:
    """The loss of a micro-batch, or what a shard adds to it, with its backward."""
    batch = dict(batch)
    draw, ids = batch.pop("draw"), batch.pop("document_ids", None)
    extension(model).dial.set(factor=draw.t if case.drawn else None)
    shards = None if ulysses is None else ulysses.shards(draw.positions)
    with documents_apart(model, ids), rows_shared(model, shards), loss_in_blocks(model, "on" if case.blocks else "off"):
        loss: Tensor = model(**batch, num_items_in_batch=items, use_cache=False).loss
        loss.backward()
    return loss.detach()


def measured(model: PreTrainedModel, run: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = run()
    return loss, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def groups_of(model: PreTrainedModel) -> list[Any]:
    """What DeepSpeed changes in the attention layers where processes have the same key heads."""
    return [getattr(module, "num_key_value_groups", None) for module in model.modules()]


def compare(case: Case, ulysses: Ulysses) -> dict[str, float]:
    model, count = model_of(case, ulysses.count), ulysses.count
    whole = batches_of(case, 1).collate(range(4))
    shard = batches_of(case, count).collate(range(4 * ulysses.rank, 4 * ulysses.rank + 4))
    items = whole["labels"][:, 1:].ne(-100).sum()
    before = groups_of(model)
    loss, gradients = measured(model, lambda: loss_of(model, whole, case, None, items))
    own, mine = measured(model, lambda: loss_of(model, shard, case, ulysses, items))
    for tensor in (own, *mine.values()):
        distributed.all_reduce(tensor)
    part_of = {id(p): part for part, found in extension(model).learned.items() for p in found}
    apart, largest = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        part = part_of.get(id(parameter), "weights")
        apart[part] = max(apart[part], float((mine[name] - gradients[name]).abs().max()))
        largest[part] = max(largest[part], float(gradients[name].abs().max()))
    assert groups_of(model) == before
    relative = {part: apart[part] / (largest[part] or 1.0) for part in apart}
    return {"loss": float((own - loss).abs()), "value": float(loss), **relative}


if __name__ == "__main__":
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled here, which takes minutes
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    ulysses = Ulysses(distributed.get_world_size())
    found = {name: compare(CASES[name], ulysses) for name in sys.argv[2:]}
    if distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found), "utf-8")
    distributed.destroy_process_group()
