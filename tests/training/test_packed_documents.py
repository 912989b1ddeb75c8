"""Documents in training: what a batch says of them, and that old runs go on as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import longwave
from longwave.extensions.steering import attention_of
from longwave.training.batches import MicroBatches, PackedRows
from longwave.training.documents import Marks
from longwave.training.draw import LengthSampler
from longwave.training.metrics import read_metrics
from longwave.training.mixture import MixedRows

SETTINGS = {"train_length": 48, "max_factor": 8, "lr": 1e-3, "batch_size": 4}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Documents of some 10 to 60 tokens each."""
    path = tmp_path / "notes.jsonl"
    texts = ("".join(f"{n + k} sheep. " for k in range(1 + n % 6)) for n in range(300))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def micro_batches(starts: list[int], rule: str = "chunks", **shares: float) -> MicroBatches:
    sampler = LengthSampler(16, 8.0, positions=rule, chunks=4, seed=5, **shares)
    tokens = torch.arange(40 * 32).view(40, 32)
    return MicroBatches(PackedRows(tokens, 160, 5, Marks(np.asarray(starts))), sampler, size=4)


@pytest.mark.parametrize("rule", ["chunks", "random", "uniform", "none"])
def test_positions_begin_again_in_each_document_and_skip_inside(rule: str) -> None:
    """Rows of 32 tokens: documents of 5 to 300. All positions are below t L, and whole rows keep their draw."""
    starts = [0, 5, 25, 26, 90, 390, *range(400, 1280, 17)]
    batches, reached, kept = micro_batches(starts, rule), 0.0, 0
    alone = MicroBatches(PackedRows(batches.rows.rows, 160, 5), batches.sampler, size=4)
    for first in range(0, 160, 4):
        items = list(range(first, first + 4))
        batch, before = batches.collate(items), alone.collate(items)
        assert batch["draw"].t == before["draw"].t
        limit = max(32, int(batch["draw"].t * 16))
        for row, (text, places) in enumerate(zip(batch["input_ids"], batch["position_ids"], strict=True)):
            begins = [k for k in range(32) if k == 0 or int(text[k]) in starts]
            ids = batch["document_ids"][row] if "document_ids" in batch else torch.zeros(32, dtype=torch.long)
            assert ids.tolist() == [sum(b <= k for b in begins) - 1 for k in range(32)]
            assert [int(label) for label in batch["labels"][row][begins[1:]]] == [-100] * len(begins[1:])
            assert int((batch["labels"][row] == -100).sum()) == len(begins) - 1
            for own in places.tensor_split(begins[1:]):
                assert int(own[0]) == 0 and bool((own.diff() > 0).all()) and int(own[-1]) < limit
                if len(begins) > 1 and len(own) > 2:
                    reached = max(reached, int(own[-1]) / limit)
            if len(begins) == 1:
                kept += 1
                assert torch.equal(places, before["position_ids"][row])
    assert kept and (reached > 0.8) == (rule != "none")


def test_documents_of_a_real_window_have_no_gaps() -> None:
    batches = micro_batches(list(range(0, 1280, 50)), long_share=1.0)
    batch = batches.collate([0, 1, 2, 3])
    assert batch["input_ids"].shape[1] in (32, 64, 128) and batch["draw"].t == batch["input_ids"].shape[1] / 16
    for ids, places in zip(batch["document_ids"], batch["position_ids"], strict=True):
        for number in range(int(ids[-1]) + 1):
            own = places[ids == number]
            assert own.tolist() == list(range(len(own)))
    assert batches.longest_window() == 50


def test_the_longest_document_is_one_that_teaches() -> None:
    """What fills a row up is no document, the dropped end of one does not count, and the replay does."""
    tokens = torch.arange(4 * 16).view(4, 16)
    starts = np.array([0, 5, 20, 60])
    assert Marks(starts).longest(64) == 40 and Marks(starts).longest(50) == 30
    learned = np.ones(64, bool)
    learned[20:60] = False
    assert Marks(starts, learned).longest(64) == 15
    rows = PackedRows(tokens, 8, 0, Marks(starts, learned))
    rows.replay = PackedRows(tokens, 8, 0, Marks(np.array([0, 30])))
    assert rows.longest_document() == 34
    mixed = MixedRows([PackedRows(tokens, 8, 0, Marks(starts, learned)), PackedRows(tokens, 8, 0)], [0.5, 0.5], 8, 0)
    assert mixed.longest_document() == 64 and mixed.several
    assert not MixedRows([PackedRows(tokens, 8, 0)] * 2, [0.5, 0.5], 8, 0).several


@pytest.mark.slow
def test_a_run_trains_on_documents_apart(llama, train, notes) -> None:
    """Far frequencies learn from documents that are all shorter than L, and the model is left without a trace."""
    folder = train(llama, method="clex", data=[notes], steps=4)
    assert all(row["field_grad_norm"] for row in read_metrics(folder / "metrics.jsonl"))
    assert attention_of(llama) == "longwave-sdpa"
    longwave.restore(llama)
    assert attention_of(llama) == "sdpa"


@pytest.mark.slow
def test_plain_attention_keeps_documents_apart_too(llama, train, notes) -> None:
    """Without log-n and bands a model has its stock attention, which a run lets respect documents for a while."""
    seen = []

    class Spy(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **others):
            seen.append(attention_of(model))

    for documents in ("apart", "joined"):
        settings = {"method": "ntk", "log_n": 0.0, "data": [notes], "steps": 1}
        train(llama, documents, documents=documents, callbacks=[Spy()], **settings)
        assert attention_of(llama) == "sdpa"
        longwave.restore(llama)
    assert seen == ["longwave-sdpa", "sdpa"]


def test_bands_train_on_documents_apart(llama, train, tmp_path) -> None:
    """Mass and temperature count the keys of a document, so they learn from those that are longer than L."""
    texts = ("".join(f"{n + k} sheep. " for k in range(16 + n % 6)) for n in range(120))
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train(
        llama, method="two-band", data=[path], steps=4, train_length=192, lora="none", long_share=0.0, row_length="192"
    )
    heads = longwave.extension(llama).heads
    assert heads is not None
    for name, start in (("log_n", 0.0), ("mass", 1.0)):
        assert bool((dict(heads.named_parameters())[name] != start).all()), name
    assert attention_of(llama) == "longwave-sdpa-bands"
    longwave.restore(llama)
    assert attention_of(llama) == "sdpa"


@pytest.mark.slow
def test_joined_documents_train_as_they_did(llama, train, notes, tmp_path) -> None:
    """A run that was recorded before documents were kept apart goes on as it began, by the same command."""
    settings = {"data": [notes], "method": "ntk", "log_n": 0.0, "steps": 4, "save_every": 2, "keep_checkpoints": True}
    whole = train(llama, "joined", documents="joined", loss_blocks="off", **settings)
    assert attention_of(llama) == "sdpa"
    record = json.loads((whole / "training.json").read_text())
    for name in ("documents", "loss_blocks", "chat_template"):
        del record["config"][name]
    record["status"] = "running"
    (whole / "training.json").write_text(json.dumps(record))
    (whole / "longwave.json").unlink()
    again = train(longwave.restore(llama), "joined", resume=True, **settings)
    assert json.loads((again / "training.json").read_text())["config"]["documents"] == "joined"
    with pytest.raises(ValueError, match=r"documents 'joined' -> 'apart'"):
        train(llama, "joined", resume=True, documents="apart", **settings)
