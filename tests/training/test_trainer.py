"""LengthTrainer: what a step sees, what it trains, and when it stops."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, TrainingArguments

import longwave
from longwave.attention.hook import ON_LAYER
from longwave.extensions.steering import log_n_of
from longwave.training.batches import collate
from longwave.training.draw import LengthSampler
from longwave.training.learned import field_parameters
from longwave.training.metrics import read_metrics
from longwave.training.trainer import LengthTrainer


class FieldGradients(TrainerCallback):
    """Norms of the field's gradients before every optimizer step."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **others):
        gradients = [p.grad for p in field_parameters(model).values()]
        self.norms.append(math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None)))


class Act(TrainerCallback):
    """Calls a function with the model at the beginning of one step."""

    def __init__(self, step: int, function) -> None:
        self.step, self.function = step, function

    def on_step_begin(self, args, state, control, model=None, **others):
        if state.global_step == self.step:
            self.function(model)


def _trains(model, train, tmp_path: Path) -> None:
    gradients = FieldGradients()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    folder = train(model, steps=20, lr=3e-3, callbacks=[gradients])
    assert len(gradients.norms) == 20
    assert min(gradients.norms) > 0
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "norm" not in name)
    assert any(p.abs().sum() > 0 for name, p in field_parameters(model).items() if "down_proj" in name)

    again = longwave.load(folder)
    ids = torch.randint(0, 256, (1, 300))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    for mine, theirs in zip(longwave.rotaries(model), longwave.rotaries(again), strict=True):
        assert torch.equal(mine.trajectory.inv_freq(5.3), theirs.trajectory.inv_freq(5.3))


@pytest.mark.slow
def test_llama_trains_clex(llama, train, tmp_path):
    _trains(llama, train, tmp_path)


@pytest.mark.slow
def test_gpt_neox_trains_clex_on_partial_rotary(neox, train, tmp_path):
    _trains(neox, train, tmp_path)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("log_n", [False, True])
def test_tokens_before_a_gap_stay_visible(llama, attention, log_n):
    """Without a mask, transformers reads a jump in the positions as the start of another sequence."""
    llama.set_attn_implementation(attention)
    llama.config.use_cache = False  # as the Trainer has it; with a cache transformers looks for no sequences
    longwave.extend(llama, "yarn", max_factor=8, log_n=log_n)
    longwave.set_policy(llama, "fixed", 8.0)
    ids = torch.randint(0, 256, (2, 32))
    batch = collate([{"input_ids": row} for row in ids])
    positions = LengthSampler(64, 8.0, chunks=3, factors="fixed")(2, 32, step=0)[1]
    assert (positions.diff() > 1).any(dim=1).all()
    other = {**batch, "input_ids": torch.cat([(ids[:, :1] + 1) % 256, ids[:, 1:]], dim=1)}
    causal = torch.ones(32, 32, dtype=torch.bool).tril().expand(2, 1, 32, 32)
    if attention == "eager":
        causal = torch.zeros(2, 1, 32, 32).masked_fill(~causal, torch.finfo(torch.float32).min)
    with torch.no_grad():
        seen = llama(**batch, position_ids=positions).logits
        moved = llama(**other, position_ids=positions).logits
        explicit = llama(ids, attention_mask=causal, position_ids=positions).logits
        unmasked = llama(ids, position_ids=positions).logits
    assert (seen[:, -1] - moved[:, -1]).abs().max() > 1e-5
    assert torch.allclose(seen, explicit, atol=1e-6)
    assert not torch.allclose(seen, unmasked, atol=1e-4), "transformers changed: is the mask still needed?"


@pytest.mark.slow
def test_defect_no_gradient_at_factor_1(llama, train):
    """The official layer left its parameters out of the graph at t = 1; distributed training then hangs."""
    present: list[bool] = []

    class Present(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **others):
            present.extend(p.grad is not None for p in field_parameters(model).values())

    train(llama, short_share=1.0, steps=2, callbacks=[Present()])
    assert present
    assert all(present)


def test_parameter_groups(llama, tmp_path):
    longwave.extend(llama, "clex", max_factor=8)
    args = TrainingArguments(
        str(tmp_path), learning_rate=1e-4, weight_decay=0.1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = LengthTrainer(llama, args, sampler=LengthSampler(64, 8.0), field_lr=5e-3)
    groups = {group["name"]: group for group in trainer.create_optimizer().param_groups}
    field = list(field_parameters(llama).values())
    assert [id(p) for p in groups["field"]["params"]] == [id(p) for p in field]
    assert (groups["field"]["lr"], groups["field"]["weight_decay"]) == (5e-3, 0.0)
    assert (groups["decayed"]["lr"], groups["decayed"]["weight_decay"]) == (1e-4, 0.1)
    assert groups["plain"]["weight_decay"] == 0.0
    assert all(p.ndim == 1 for p in groups["plain"]["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(list(llama.parameters()))


@pytest.mark.slow
def test_field_and_weights_are_clipped_separately(llama, train):
    """With one norm for both, the weights' step would shrink with the field's."""
    norms: list[tuple[float, float]] = []

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **others):
            field = field_parameters(model)
            weights = [p.grad.norm() for name, p in model.named_parameters() if name not in field]
            norms.append(
                (
                    float(torch.stack(weights).norm()),
                    float(torch.stack([p.grad.norm() for p in field.values()]).norm()),
                )
            )

    rows = read_metrics(train(llama, steps=2, max_grad_norm=1e-6, callbacks=[Norms()]) / "metrics.jsonl")
    assert all(row["grad_norm"] > 1e-6 and row["field_grad_norm"] > 1e-6 for row in rows)
    assert [value for pair in norms for value in pair] == pytest.approx([1e-6] * 4, rel=0.2)


@pytest.mark.slow
def test_rates_follow_a_cosine_with_warm_up(llama, train):
    rows = read_metrics(train(llama, steps=20, warmup=0.2, lr=1e-3, field_lr=1e-2) / "metrics.jsonl")
    rates = [row["lr"] for row in rows]
    assert rates[:5] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[12] == pytest.approx(5e-4)
    assert [row["field_lr"] for row in rows] == pytest.approx([10 * rate for rate in rates])


@pytest.mark.slow
def test_gradient_checkpointing_is_exact(llama, train):
    other = copy.deepcopy(llama)
    plain = read_metrics(train(llama, "plain") / "metrics.jsonl")
    rows = read_metrics(train(other, "recomputed", gradient_checkpointing=True) / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    assert [row["grad_norm"] for row in rows] == [row["grad_norm"] for row in plain]
    assert not any(getattr(module, "gradient_checkpointing", False) for module in other.modules())


def test_reentrant_checkpointing_is_refused(llama, tmp_path):
    longwave.extend(llama, "clex", max_factor=8)
    args = TrainingArguments(str(tmp_path), gradient_checkpointing_kwargs={"use_reentrant": True}, use_cpu=True)
    with pytest.raises(ValueError, match="use_reentrant=True loses the gradient"):
        LengthTrainer(llama, args, sampler=LengthSampler(64, 8.0), field_lr=1e-3)
    llama.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=True loses the gradient"):
        LengthTrainer(llama, TrainingArguments(str(tmp_path), use_cpu=True), sampler=LengthSampler(64, 8.0), field_lr=1)


@pytest.mark.slow
def test_several_gpus_in_one_process_are_refused(llama, train, tmp_path, monkeypatch):
    """nn.DataParallel's replicas have no parameters: the field would silently stay as it is."""
    folder = train(copy.deepcopy(llama))
    stamp = (folder / "longwave.json").stat().st_mtime_ns
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"2 GPUs in one process.*torchrun --nproc-per-node 2") as caught:
        train(copy.deepcopy(llama), overwrite=True)
    assert "\n" not in str(caught.value)
    assert (folder / "longwave.json").stat().st_mtime_ns == stamp
    longwave.extend(llama, "clex", max_factor=8)
    with pytest.raises(ValueError, match="2 GPUs in one process"):
        LengthTrainer(llama, TrainingArguments(str(tmp_path)), sampler=LengthSampler(64, 8.0), field_lr=1e-3)


@pytest.mark.slow
def test_a_field_without_gradient_stops_training(llama, train):
    def cut(model) -> None:
        longwave.rotaries(model)[0].register_forward_hook(lambda module, inputs, out: tuple(x.detach() for x in out))

    with pytest.raises(ValueError, match="no gradient reaches the learned frequencies") as caught:
        train(llama, callbacks=[Act(0, cut)])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_bf16_keeps_weights_and_frequencies_precise(llama, train):
    gradients, full = FieldGradients(), copy.deepcopy(llama)
    rows = read_metrics(train(llama, precision="bf16", callbacks=[gradients]) / "metrics.jsonl")
    assert min(gradients.norms) > 0
    assert {p.dtype for p in llama.parameters()} == {torch.float32}
    reference = read_metrics(train(full, "fp32", precision="fp32") / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(reference[0]["loss"], rel=1e-2)
    assert rows[0]["loss"] != reference[0]["loss"]
    with torch.no_grad():  # autocast is gone with the Trainer
        assert llama(torch.zeros(1, 4, dtype=torch.long)).logits.dtype == torch.float32


@pytest.mark.slow
def test_accumulated_micro_batches_share_the_t_of_their_step(llama, train):
    rows = read_metrics(train(llama, accumulation=3, batch_size=2) / "metrics.jsonl")
    assert all(len(row["factors"]) == 3 and len(set(row["factors"])) == 1 for row in rows)
    assert len({row["factors"][0] for row in rows}) == len({row["positions"] for row in rows}) == 3
    assert [row["tokens"] for row in rows] == [288, 576, 864]


@pytest.mark.slow
def test_short_micro_batches_and_factors_beyond_the_one_in_use(llama, train):
    rows = read_metrics(train(llama, steps=12, train_factor=64, short_share=0.3) / "metrics.jsonl")
    factors = [row["factors"][0] for row in rows]
    assert max(factors) > 8
    assert factors.count(1.0) >= 1
    rotary = longwave.rotaries(llama)[0]
    assert (rotary.factor, rotary.beyond, rotary.trajectory.max_factor) == (None, "error", 8)


@pytest.mark.slow
def test_long_micro_batches_are_real_windows_of_the_text(llama, train, book, tokenizer):
    """A model that reads a span of the text, at consecutive positions, log-n counting the keys that are there."""
    seen: list[tuple[torch.Tensor, torch.Tensor, bool]] = []

    def counts_keys() -> bool:
        return all(getattr(layer.self_attn, ON_LAYER).temperature.by_keys for layer in llama.model.layers)

    def watch(module, args, kwargs):
        seen.append((kwargs["input_ids"], kwargs["position_ids"], counts_keys()))

    handle = llama.register_forward_pre_hook(watch, with_kwargs=True)
    rows = read_metrics(train(llama, steps=12, train_length=384, row_length=48, long_share=0.5) / "metrics.jsonl")
    handle.remove()
    stream = tokenizer(book.read_text("utf-8"))["input_ids"]
    long = [(ids, positions) for ids, positions, _ in seen if ids.shape[1] > 48]
    assert {tuple(ids.shape) for ids, _ in long} == {(2, 96), (1, 192)}
    text = tokenizer.decode(stream)
    for ids, positions in long:
        assert torch.equal(positions, torch.arange(ids.shape[1]).expand_as(ids))
        assert all(tokenizer.decode(row) in text for row in ids.tolist())
    assert all(by_keys for *_, by_keys in seen)
    assert log_n_of(llama) == 1.0
    assert not counts_keys()
    assert {row["tokens"] // row["step"] for row in rows} == {192}


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulation"), [(3, 1), (4, 1), (4, 2)])
def test_the_loss_is_the_mean_over_the_tokens_that_the_model_read(llama, train, batch_size, accumulation):
    """Long windows predict more of their tokens than the rows in their place; none of the batch is left out."""
    losses: list[torch.Tensor] = []

    def watch(module, args, kwargs, output):
        targets = kwargs["input_ids"][:, 1:]
        losses.append(cross_entropy(output.logits[:, :-1].detach().flatten(0, 1), targets.flatten(), reduction="none"))
        assert kwargs["input_ids"].numel() == batch_size * 48

    handle = llama.register_forward_hook(watch, with_kwargs=True)
    settings = {"batch_size": batch_size, "accumulation": accumulation, "steps": 8}
    settings |= {"train_length": 384, "row_length": 48, "long_share": 0.5}
    rows = read_metrics(train(llama, **settings) / "metrics.jsonl")
    handle.remove()
    assert {len(loss) for loss in losses} >= {batch_size * 47, batch_size * 48 - 1}
    steps = [torch.cat(losses[first : first + accumulation]) for first in range(0, len(losses), accumulation)]
    assert [row["loss"] for row in rows] == pytest.approx([float(step.mean()) for step in steps], rel=1e-5)


def _poison(model) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[0] = float("nan")


@pytest.mark.slow
def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(llama, train, tmp_path, caplog):
    start = copy.deepcopy(llama)
    with pytest.raises(ValueError, match=r"loss is nan at step 6 .*checkpoint-4") as caught:
        train(llama, steps=8, save_every=2, callbacks=[Act(5, _poison)])
    assert "\n" not in str(caught.value)
    out = tmp_path / "out"
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert not (out / "longwave.json").exists()
    with pytest.raises(ValueError, match="holds no model"):
        longwave.load(out)
    # the way on: from the checkpoint, slower
    again = copy.deepcopy(start)
    train(start, steps=8, save_every=2, lr=1e-4, resume=True)
    assert (
        "goes on with other settings: lr 0.001 -> 0.0001." in caplog.text and "Nothing was trained" not in caplog.text
    )
    train(again, steps=8, save_every=2, lr=1e-4, resume=True)
    assert f"the run in {out} is finished already. Nothing was trained." in caplog.text
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[3]["lr"] > 5e-4
    assert max(row["lr"] for row in rows[4:]) < 1e-4
    assert all(torch.isfinite(p).all() for p in longwave.load(out).parameters())


@pytest.mark.slow
def test_nan_gradient_under_a_finite_loss_stops_too(llama, train):
    def break_gradient(model) -> None:
        model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(ValueError, match=r"gradient norm is (nan|inf) at step 2 .*No checkpoint yet"):
        train(llama, save_every=2, callbacks=[Act(1, break_gradient)])
    assert all(torch.isfinite(p).all() for p in llama.parameters())


@pytest.mark.slow
def test_field_alone(llama, train):
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    train(llama, freeze_weights=True, field_lr=1e-2)
    after = dict(llama.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.requires_grad for p in llama.parameters())
    assert any(p.abs().sum() > 0 for name, p in field_parameters(llama).items() if "down_proj" in name)
