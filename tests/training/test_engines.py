"""Engines in two processes are one process; what would be wrong without a word is refused."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import ENGINES, FSDP2, Launch
from safetensors.torch import load_file
from transformers import TrainingArguments

import longwave
from longwave.extensions.adapter import LoRA
from longwave.extensions.handle import extension, rotaries
from longwave.training.arguments import training_arguments
from longwave.training.config import TrainConfig
from longwave.training.engines import keep_whole, prepare, refuse_cast, require_engine, require_readable
from longwave.training.gathered import fill, outline
from longwave.training.metrics import read_metrics

# Largest difference to one process: of the first gradient of the field, and of the losses.
GRADIENT = {"ddp": 0.0, "fsdp2": 1e-6, "zero2": 1e-5, "zero3": 1e-5}
STEPS = ("--steps", "3", "--max-grad-norm", "0")  # DeepSpeed clips by one norm: without clipping all are comparable


def base_of(llama, tokenizer, folder: Path, *, tied: bool = False) -> Path:
    """The random Llama in a folder."""
    if tied:
        llama.config.tie_word_embeddings = True
        llama.tie_weights()
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gradients(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path)["gradients"]
    return found


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def draws(folder: Path) -> list[tuple[Any, ...]]:
    return [(row["factors"], row["positions"], row["tokens"]) for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "tied"), [("ddp", False), *((engine, tied) for engine in ENGINES[1:] for tied in (False, True))]
)
def test_two_processes_are_one(llama, tokenizer, book, tmp_path, engine, tied):
    """Draws, losses, the first gradient of the field, and the weights in the end; `load` reads the result."""
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    base = base_of(llama, tokenizer, tmp_path / "base", tied=tied)
    alone = Launch("one", 1, watched=tmp_path / "alone.pt", more=STEPS).run(base, book, tmp_path / "alone")
    both = Launch(engine, watched=tmp_path / "both.pt", more=STEPS).run(base, book, tmp_path / "both")
    assert draws(both) == draws(alone)
    assert losses(both) == pytest.approx(losses(alone), abs=1e-6, rel=1e-6)
    mine, theirs = gradients(tmp_path / "alone.pt"), gradients(tmp_path / "both.pt")
    assert mine.keys() == theirs.keys() and any(gradient.any() for gradient in mine.values())
    for name, gradient in mine.items():
        scale = float(gradient.abs().max()) or 1.0
        assert float((gradient - theirs[name]).abs().max()) <= GRADIENT[engine] * scale, name
    one, two = longwave.load(alone), longwave.load(both)
    assert (two.lm_head.weight is two.model.embed_tokens.weight) is tied
    for (name, mine_now), theirs_now in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(mine_now, theirs_now, atol=2e-5), name
    assert extension(two).is_trained


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_scalars_and_a_lora_on_every_engine(llama, tokenizer, book, tmp_path, engine):
    """The default method: most weights are frozen, and layers read the scalars outside of the module that has them."""
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    base = base_of(llama, tokenizer, tmp_path / "base")
    more = *STEPS, "--method", "two-band", "--train-length", "128"
    alone = Launch("one", 1, more=more).run(base, book, tmp_path / "alone")
    both = Launch(engine, more=more).run(base, book, tmp_path / "both")
    assert draws(both) == draws(alone)
    assert losses(both) == pytest.approx(losses(alone), rel=2e-5)
    for name in ("longwave.safetensors", "adapter/adapter_model.safetensors"):
        mine, theirs = load_file(alone / name), load_file(both / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[key], theirs[key], atol=1e-4) for key in mine)
    longwave.load(both)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_frequencies_stay_float32_in_bf16_engines(trained, book, tmp_path, engine):
    """A field that has left its start: cast to bfloat16, its θ would be off by 1 %."""
    if engine == "zero3":
        pytest.importorskip("deepspeed")
    more = *STEPS, "--max-factor", "4", "--steps", "1"
    path = tmp_path / "seen.pt"
    Launch(engine, autocast=True, watched=path, more=more).run(trained, book, tmp_path / "out")
    t, theta = torch.load(path)["theta"]
    expected = rotaries(longwave.load(trained))[0].turn(t).inv_freq.detach()
    assert t > 1.5
    assert float((theta / expected - 1).abs().max()) <= 1e-7


def test_a_copy_of_a_model_is_filled_and_saved(llama, tmp_path):
    """As rank 0 does it, here without an engine: all parts of the extension, and tied weights."""
    llama.config.tie_word_embeddings = True
    llama.tie_weights()
    longwave.extend(llama, "clex+two-band", max_factor=8, head_scalars=True, adapter=LoRA(4, 4.0))
    copied = outline(llama)
    assert all(parameter.is_meta for parameter in copied.parameters())
    for parameter in llama.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    fill(copied, llama)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    again, ids = longwave.load(longwave.save(copied, tmp_path / "out")), torch.randint(0, 256, (1, 200))
    with torch.no_grad():
        expected = llama(ids).logits
        assert torch.equal(copied(ids).logits, expected)
        assert torch.equal(again(ids).logits, expected)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_an_engine_that_casts_what_is_learned_is_refused(llama, kind):
    config = {kind: {"enabled": True}}
    refuse_cast(config, longwave.extend(copy.deepcopy(llama), "ntk", max_factor=8))  # nothing to cast
    for settings, what in (({"method": "clex"}, "frequencies"), ({"head_scalars": True}, "scalars of heads")):
        model = longwave.extend(copy.deepcopy(llama), max_factor=8, **settings)
        with pytest.raises(ValueError, match=rf'{kind}\.enabled casts the learned {what} .*"torch_autocast"') as caught:
            refuse_cast(config, model)
        assert "\n" not in str(caught.value)
        refuse_cast({kind: {"enabled": False}, "torch_autocast": {"enabled": True}}, model)


@pytest.mark.parametrize(("given", "kept"), [("auto", 640), (10**6, 10**6), (0, 512), (None, 10**5)])
def test_zero_3_leaves_small_parameters_whole(llama, given, kept):
    longwave.extend(llama, "clex", max_factor=8)
    largest = max(parameter.numel() for parameter in rotaries(llama)[0].parameters())
    zero = {"stage": 3} | ({} if given is None else {"stage3_param_persistence_threshold": given})
    keep_whole({"zero_optimization": zero}, llama)
    assert zero["stage3_param_persistence_threshold"] == max(kept if given != 0 else 0, largest)


def test_ddp_looks_for_no_parameters_without_a_gradient(llama, tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    longwave.extend(llama, "clex", max_factor=8)
    prepare(arguments, llama)
    assert arguments.ddp_find_unused_parameters is False


def test_fsdp_that_accelerate_would_leave_out_is_refused(monkeypatch):
    """On CPUs it would run DDP and say nothing."""
    trainer: Any = SimpleNamespace(is_fsdp_enabled=False, args=SimpleNamespace(world_size=2))
    require_engine(trainer)
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="accelerate runs FSDP on GPUs only"):
        require_engine(trainer)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt"], r"written by DeepSpeed, and this run has DDP"),
        (["pytorch_model_fsdp_0/.metadata"], r"written by FSDP, and this run has DDP or one process"),
        (["model.safetensors"], None),
    ],
)
def test_a_checkpoint_of_another_engine_is_refused(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    arguments: Any = SimpleNamespace(deepspeed_plugin=None, world_size=1)
    if message is None:
        require_readable(tmp_path, arguments)
        return
    with pytest.raises(ValueError, match=message):
        require_readable(tmp_path, arguments)


def test_a_checkpoint_of_deepspeed_is_bound_to_its_processes(tmp_path):
    (tmp_path / "global_step3").mkdir()
    for rank in range(2):
        (tmp_path / "global_step3" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    require_readable(tmp_path, SimpleNamespace(deepspeed_plugin=object(), world_size=2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="DeepSpeed in 2 processes, and only 2 processes can read it, not 1"):
        require_readable(tmp_path, SimpleNamespace(deepspeed_plugin=object(), world_size=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (None, {}, "deepspeed .* does not exist"),
        ("[]", {}, "holds no JSON object, but a list"),
        ("{}", {"precision": "bf16"}, r'precision bf16, and .* Put this into the config .*"torch_autocast"'),
    ],
)
def test_a_config_of_deepspeed_that_cannot_be(tmp_path, content, settings, message):
    path = tmp_path / "zero.json"
    if content is not None:
        path.write_text(content)
    if content == "{}" and find_spec("deepspeed") is None:
        message = r"--deepspeed needs DeepSpeed: pip install 'longwave\[deepspeed\]'"
    config = TrainConfig.create(train_length=48, max_factor=8, deepspeed=str(path), **settings)
    with pytest.raises(ValueError, match=message):
        training_arguments(config, tmp_path, 1e-3)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_recipes_of_deepspeed_autocast_and_cast_nothing(llama, stage):
    from launching import RECIPES

    config = json.loads((RECIPES / f"zero{stage}.json").read_text())
    refuse_cast(config, longwave.extend(llama, "clex", max_factor=8))
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert config["zero_optimization"]["stage"] == stage
