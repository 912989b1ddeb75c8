"""Rows that processes share give the loss and the gradients of whole rows; layouts that cannot be are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shared_rows import CASES, T_OF_SHARD, batches_of
from tiny import tiny_model
from transformers import TrainingArguments

import longwave
from longwave.attention.hook import PREFIX
from longwave.extensions.documents import forget_documents
from longwave.extensions.shards import prepare_shards
from longwave.extensions.steering import attention_of
from longwave.training.config import TrainConfig
from longwave.training.engines import prepare
from longwave.training.ranks import SIZE, USES, Ranks, shards_asked
from longwave.training.ulysses import hidden_from_accelerate, require_alike, require_even, require_sum

FEW_KEYS = ["clex log-n 1.0", "clex+two-band log-n 1.0", "documents, bands", "checkpointing", "neox, bands", T_OF_SHARD]


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """What `shared_rows.py` measures in two processes; in four, which share two key heads, on some cases."""
    pytest.importorskip("deepspeed")
    path, script = tmp_path_factory.mktemp("found") / "found.json", Path(__file__).with_name("shared_rows.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    line = [*torchrun, str(script), str(path), *(CASES if request.param == 2 else FEW_KEYS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, dict[str, float]] = json.loads(path.read_text("utf-8"))
    return result


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_shards_are_whole_rows(found):
    """Scaling methods and bands, log-n by keys and by position, documents, scalars of heads, LoRA, checkpointing."""
    assert len(found) >= len(FEW_KEYS)
    for name, each in found.items():
        if name != T_OF_SHARD:
            assert each["loss"] <= 2e-6, name
            assert max(each[part] for part in each.keys() - {"loss", "value"}) <= 1e-5, (name, each)


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_a_shard_does_not_tell_t(found):
    """If the dial read t from the positions of a shard, the first shard would be within L. The loss shows it."""
    assert found[T_OF_SHARD]["loss"] > 1e-3


def test_shards_cover_a_micro_batch_and_count_each_label_once():
    whole = batches_of(CASES["documents"], 1)
    shared = batches_of(CASES["documents"], 4)
    assert len(shared) == 4 * len(whole)
    expected = whole.collate(range(4))
    shards = [shared.collate(range(4 * rank, 4 * rank + 4)) for rank in range(4)]
    for name in ("input_ids", "position_ids", "labels", "attention_mask"):
        assert torch.equal(torch.cat([shard[name] for shard in shards], 1), expected[name])
    following = torch.cat([shard["shift_labels"] for shard in shards], 1)
    assert torch.equal(following[:, :-1], expected["labels"][:, 1:]) and bool((following[:, -1] == -100).all())
    for shard in shards:
        assert torch.equal(shard["document_ids"], expected["document_ids"])
        assert shard["draw"].t == expected["draw"].t and torch.equal(shard["draw"].positions, expected["position_ids"])
    assert (shared.longest_window(), shared.used()) == (whole.longest_window(), whole.used())


def test_processes_that_share_rows_make_fewer_micro_batches(monkeypatch):
    config = TrainConfig.create(train_length=48, max_factor=8, accumulation=2, sequence_parallel=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    begun = Ranks.of(config)
    assert begun.per_step == 4
    record = {"config": {"accumulation": begun.begun}, **begun.record}
    for processes, shards, accumulation in ((1, 1, 4), (2, 1, 2), (2, 2, 4), (8, 2, 1), (4, 4, 4)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        other = TrainConfig.create(train_length=48, max_factor=8, accumulation=2, sequence_parallel=shards)
        assert not other.differences(config.as_dict())
        on = Ranks.going_on(other, record)
        assert (on.accumulation, on.per_step) == (accumulation, 4)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ValueError, match=r"4 micro-batches, which 6 processes cannot share .* processes: 2, 4, 8\."):
        Ranks.going_on(config, record)


def test_the_setting_or_the_environment_of_accelerate_asks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("longwave.training.ranks.find_spec", lambda name: object())
    assert shards_asked(1) == 1
    assert shards_asked(2) == 2
    monkeypatch.setenv(SIZE, "4")
    assert shards_asked(1) == shards_asked(4) == 4
    with pytest.raises(ValueError, match=rf"sequence_parallel is 2, and {SIZE} is 4\. Leave one"):
        shards_asked(2)
    monkeypatch.setenv(USES, "true")
    with hidden_from_accelerate():
        assert os.environ[USES] == "false"
    assert os.environ[USES] == "true"
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    with pytest.raises(ValueError, match="does not go with tensor parallelism"):
        shards_asked(4)


@pytest.mark.parametrize(
    ("count", "installed", "message"),
    [
        (3, True, r"needs a multiple of 3 processes, and this run has 4\. Start it with torchrun --nproc-per-node 3\."),
        (2, False, r"sequence_parallel needs DeepSpeed: pip install 'longwave\[deepspeed\]'\."),
    ],
)
def test_groups_that_cannot_be_are_refused(monkeypatch, count, installed, message):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("longwave.training.ranks.find_spec", lambda name: object() if installed else None)
    with pytest.raises(ValueError, match=message) as caught:
        shards_asked(count)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "count", "row", "message"),
    [
        ("clex", 3, 48, r"3 processes cannot share the 4 query heads and 2 key heads .* sequence_parallel: 1, 2, 4\."),
        ("clex", 2, 47, r"a row of 47 tokens cannot be shared evenly by 2 processes .* row length of 46 tokens\."),
        ("token-select", 2, 48, r"token-select chooses keys for all heads of a row, .* bands \(two-band\)"),
    ],
)
def test_rows_and_heads_that_cannot_be_shared_are_refused(llama, method, count, row, message):
    config = TrainConfig.create(train_length=row, max_factor=8, method="clex", sequence_parallel=count)
    longwave.extend(llama, method, max_factor=8)
    with pytest.raises(ValueError, match=message) as caught:
        require_even(llama, config, 64)
    assert "\n" not in str(caught.value)


def test_a_model_that_carries_text_on_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"cannot have rows that several processes share: .* without attention"):
        prepare_shards(tiny_model("jamba"), 2)


def test_a_loss_that_is_no_sum_over_tokens_is_refused():
    mixture = tiny_model("mixtral")
    for accepts, router in ((True, True), (False, False)):
        mixture.config.output_router_logits = router
        trainer: Any = SimpleNamespace(model=mixture, model_accepts_loss_kwargs=accepts)
        with pytest.raises(ValueError, match="the loss of MixtralForCausalLM is no mean over its tokens alone"):
            require_sum(trainer)
    require_sum(SimpleNamespace(model=mixture, model_accepts_loss_kwargs=True))  # type: ignore[arg-type]


def test_attention_that_cannot_be_divided_by_heads_is_refused(llama):
    layer, key = llama.model.layers[0].self_attn, torch.zeros(2, 2, 8, 16)
    require_alike(
        layer, key, key, {"position_ids": torch.arange(8), "shift_labels": torch.zeros(2, 8), "scaling": 0.25}
    )
    with pytest.raises(ValueError, match="LlamaAttention has s_aux for all heads, which Ulysses cannot divide"):
        require_alike(layer, key, key, {"s_aux": torch.zeros(4)})  # the sinks of gpt-oss
    with pytest.raises(ValueError, match="has keys and values of different sizes"):
        require_alike(layer, key, key[..., :8], {})


def test_the_attention_of_a_model_is_as_before_when_training_is_over(llama):
    before = attention_of(llama)
    longwave.extend(llama, "ntk", max_factor=8, log_n=False)
    prepare_shards(llama, 2)
    assert attention_of(llama) == PREFIX + before
    forget_documents(llama)
    assert attention_of(llama) == before


def test_context_parallelism_points_to_ulysses(llama, tmp_path, monkeypatch):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    longwave.extend(llama, "clex", max_factor=8)
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    with pytest.raises(ValueError, match=r"runs on GPUs and plain causal attention alone.* --sequence-parallel N"):
        prepare(arguments, llama)
    monkeypatch.delenv("PARALLELISM_CONFIG_CP_SIZE")
    arguments.parallelism_config = SimpleNamespace(cp_enabled=False, sp_enabled=True)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="longwave runs Ulysses itself"):
        prepare(arguments, llama)
