"""`--dry-run`: what is counted, on which machine, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import longwave
from longwave.cli.main import main
from longwave.training.kept import Forward, count_kept
from longwave.training.loss import held_at_once
from longwave.training.machine import GIB, Machine
from longwave.training.memory import Sizes
from longwave.training.plan import plan

SETTINGS = {"train_length": 256, "max_factor": 8, "batch_size": 4}


@pytest.fixture
def config_only(tmp_path: Path, llama: LlamaForCausalLM) -> Path:
    """A folder that holds config.json alone."""
    llama.config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{}, {"method": "clex", "row_length": 64}, {"freeze_weights": True}, {"method": "ntk"}]
)
def test_parameters_are_those_of_the_run(llama, config_only: Path, more: dict) -> None:
    from longwave.training.config import TrainConfig
    from longwave.training.prepare import attach_method

    settings = SETTINGS | ({"long_share": 0.5} if more.get("row_length") else {}) | more
    found = plan(str(config_only), settings, Machine())
    attach_method(llama, TrainConfig.create(**settings))
    assert found.sizes.total == sum(parameter.numel() for parameter in llama.parameters())
    assert found.sizes.trained == sum(p.numel() for p in llama.parameters() if p.requires_grad)


def test_windows_are_those_that_are_drawn(config_only: Path) -> None:
    found = plan(str(config_only), SETTINGS, Machine(devices=2)).as_dict()
    assert found["windows"] == [
        {"kind": "real windows", "share": 0.5, "tokens": (128, 256), "factors": (2.0, 4.0)},
        {"kind": "rows with skips", "share": 0.5, "tokens": (128,), "factors": (4.0, 8)},
    ]
    assert found["tokens_per_step"] == 4 * 128 * 2
    assert found["learning_rate"] == 5e-3  # of the LoRA of a small model


@pytest.mark.parametrize("more", [{}, {"method": "clex", "gradient_checkpointing": True}])
def test_devices_that_share_rows_have_less_of_each(config_only: Path, more: dict) -> None:
    """Of what a row costs, and not of the weights; and the devices make fewer micro-batches."""
    whole = plan(str(config_only), SETTINGS | more, Machine(devices=4))
    shared = plan(str(config_only), SETTINGS | more | {"sequence_parallel": 2}, Machine(devices=4))
    assert shared.step_tokens * 2 == whole.step_tokens
    assert whole.memory is not None and shared.memory is not None
    assert shared.memory.activations == pytest.approx(whole.memory.activations / 2, rel=1e-6)
    assert shared.memory.logits * 2 == whole.memory.logits
    assert shared.memory.weights == whole.memory.weights
    with pytest.raises(ValueError, match=r"multiple of 2 devices, and this plan is for 1\. Pass --devices 2\."):
        plan(str(config_only), SETTINGS | {"sequence_parallel": 2}, Machine(devices=1))


@pytest.mark.slow
def test_engines_divide_what_they_say(config_only: Path) -> None:
    """Of 8 devices each has an eighth of what its engine divides, and all of the rest."""
    settings = SETTINGS | {"method": "ntk", "row_length": 256}
    whole = plan(str(config_only), settings, Machine(devices=1)).memory
    assert whole is not None
    parts = {
        engine: plan(str(config_only), settings, Machine(devices=8, engine=engine)).memory
        for engine in ("ddp", "fsdp2", "zero2", "zero3")
    }
    for engine, divided in {
        "ddp": [], "zero2": ["optimizer"], "zero3": ["weights", "gradients", "optimizer"],
        "fsdp2": ["weights", "gradients", "optimizer"],
    }.items():  # fmt: skip
        for part in ("weights", "gradients", "optimizer"):
            if part in divided:
                assert getattr(parts[engine], part) == getattr(whole, part) // 8, (engine, part)
            elif part != "gradients":
                assert getattr(parts[engine], part) == getattr(whole, part), (engine, part)
    assert parts["ddp"].gradients == 2 * whole.gradients, "buckets"
    assert len({each.activations for each in parts.values()} | {whole.activations}) == 1


@pytest.mark.parametrize("bf16", [False, True])
def test_what_a_forward_keeps_is_what_autograd_keeps(llama: LlamaForCausalLM, tmp_path: Path, bf16: bool) -> None:
    """Counted without memory on the outline, and with real tensors on the model itself: the same number of bytes."""
    from longwave.checkpoints.folder import resolve
    from longwave.checkpoints.outline import read_outline

    llama.config.save_pretrained(tmp_path)
    kept = count_kept(read_outline(resolve(tmp_path)).plain, Forward(2, 48, bf16))
    assert kept is not None
    for module in llama.modules():
        if bf16 and isinstance(module, torch.nn.Linear):
            module.to(torch.bfloat16)
    owned, sizes = {p.untyped_storage().data_ptr() for p in llama.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            sizes[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros(2, 48, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), hooks:
        llama.train().model(input_ids=ids, use_cache=False)
    real = sum(size for size, _ in sizes.values())
    assert kept.layers + kept.rest == pytest.approx(real, rel=0.03)
    assert kept.inputs == 2 * 2 * 48 * 64 * 4


@pytest.mark.slow
def test_what_cannot_fit_is_refused(config_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", str(config_only), "--dry-run", "--train-length", "256", "--max-factor", "8"]
    assert main([*line, "--device-memory", "24GB", "--devices", "4", "--engine", "fsdp2"]) == 0
    said = capsys.readouterr().out
    assert "4 x 24.0 GB, fsdp2, bf16" in said and "total" in said and "with --gradient-checkpointing" in said
    assert main([*line, "--device-memory", "1GB", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["fits"] is False
    assert "GB on each device, which has 1.0 GB. Try --gradient-checkpointing" in said.err
    assert not (config_only.parent / "-").exists() and not Path("-").exists()
    assert main([*line, "--device-memory", "big"]) == 1
    assert "device memory must be a size such as 24GB, got 'big'." in capsys.readouterr().err
    assert main(["train", str(config_only / "nowhere"), *line[2:]]) == 1
    assert "does not exist" in capsys.readouterr().err


RUN = """
import sys, torch, longwave
longwave.train(sys.argv[1], [sys.argv[2]], sys.argv[3], progress=False, steps=2, train_length=1024, max_factor=8,
               batch_size=4, row_length=512, gradient_checkpointing=sys.argv[4] == "True", stop_rise=0.0,
               method=sys.argv[5], long_share=0.5)
# Not getrusage's ru_maxrss: over fork and exec that keeps the peak of the process that ran the tests.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(("method", "checkpointing"), [("two-band", True), ("ntk", False)])
def test_the_estimate_is_near_the_measured_peak(
    tmp_path: Path, tokenizer, book: Path, method: str, checkpointing: bool
) -> None:
    config = LlamaConfig(
        vocab_size=16000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = [tmp_path / "model", book, tmp_path / "out", checkpointing, method]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    settings = {
        "train_length": 1024, "max_factor": 8, "batch_size": 4, "row_length": 512, "method": method,
        "gradient_checkpointing": checkpointing, "long_share": 0.5,
    }  # fmt: skip
    estimate = plan(str(tmp_path / "model"), settings, Machine()).memory
    assert estimate is not None
    print(method, checkpointing, {k: round(v / GIB, 3) for k, v in estimate.as_dict().items()}, measured / GIB)
    assert estimate.total == pytest.approx(measured, rel=0.25)
    assert longwave.load(tmp_path / "out") is not None


def test_a_quantized_base_and_a_loss_in_blocks_need_less(llama: LlamaForCausalLM) -> None:
    """What the plan takes off: three and a half bytes of each weight of a layer, and all logits but a block's."""
    sizes = Sizes.of(llama)
    layers = sum(w.numel() for n, w in llama.named_parameters() if "proj" in n)
    for parameter in llama.parameters():
        parameter.requires_grad_(False)
    frozen = Sizes.of(llama)
    assert frozen.saved("4bit") == int(3.48 * layers)
    assert frozen.saved("8bit") == int(2.99 * layers)
    assert frozen.saved(None) == sizes.saved("4bit") == 0, "weights that are trained have all their bits"
    many = 2**30
    assert held_at_once(many, "off", "cuda") == many
    assert held_at_once(many, "auto", "cuda") == held_at_once(many, "on", "cuda") < many
    assert held_at_once(1000, "auto", "cpu") == 1000
