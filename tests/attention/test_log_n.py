"""Per-query log-n: what it computes, and that no backend, padding or packing changes it."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_model
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    modeling_flash_attention_utils,
)
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

import longwave
from longwave.attention.kernels import decode as _decode
from longwave.attention.temperature import log_n_scale
from longwave.extensions.attach import suspended
from longwave.extensions.policy import frozen
from longwave.extensions.sites import host_of
from longwave.extensions.steering import count_keys, log_n_of

L = 64
LENGTH = 160


def with_log_n(model: PreTrainedModel, implementation: str = "sdpa", log_n: bool | float = 1.0) -> PreTrainedModel:
    """Unscaled frequencies: what changes is log-n."""
    model.set_attn_implementation(implementation)
    return longwave.extend(model, "none", max_factor=16, log_n=log_n, original_length=L)


def logits(model: PreTrainedModel, ids: Tensor, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **inputs).logits


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 256, (2, LENGTH))


def test_scale_is_the_formula() -> None:
    positions = torch.arange(4 * L)[None]
    scale = log_n_scale(positions, L, 1.0)
    expected = [max(1.0, math.log(p + 1) / math.log(L)) for p in range(4 * L)]
    torch.testing.assert_close(scale[0], torch.tensor(expected))
    torch.testing.assert_close(log_n_scale(positions, L, 0.5), scale**0.5)


def test_defect_log_n_shrinks_logits_below_l(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """Official factors below L are under 1; here they are 1 to the bit, also for tokens of a longer text."""
    assert torch.equal(log_n_scale(torch.arange(L), L, 1.0), torch.ones(L))
    plain = logits(llama, ids)
    with_log_n(llama)
    assert torch.equal(logits(llama, ids)[:, :L], plain[:, :L])
    assert not torch.equal(logits(llama, ids)[:, L:], plain[:, L:])


def test_every_query_has_its_own_factor(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """The reference scales the query projection of each position by hand."""
    scale = log_n_scale(torch.arange(LENGTH), L, 1.0)[None, :, None]
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda _, __, query: query * scale) for layer in llama.model.layers
    ]
    reference = logits(llama, ids)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits(with_log_n(llama), ids), reference, atol=1e-5, rtol=1e-5)


def test_defect_log_n_depends_on_the_backend(llama: LlamaForCausalLM, ids: Tensor) -> None:
    ours = {}
    for implementation in ("eager", "sdpa"):
        ours[implementation] = logits(with_log_n(llama, implementation), ids)
        longwave.restore(llama)
        assert llama.config._attn_implementation == implementation
    torch.testing.assert_close(ours["eager"], ours["sdpa"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_left_padding(llama: LlamaForCausalLM, ids: Tensor, implementation: str) -> None:
    """Factors follow position ids, not places in the row, and the mask still masks."""
    with_log_n(llama, implementation)
    pad = 30
    padded = torch.cat([torch.zeros(2, pad, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(LENGTH + pad) >= pad).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ours = logits(llama, padded, attention_mask=mask, position_ids=positions)[:, pad:]
    torch.testing.assert_close(ours, logits(llama, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_positions(llama: LlamaForCausalLM, ids: Tensor, implementation: str) -> None:
    with_log_n(llama, implementation)
    positions = torch.arange(LENGTH).repeat(2)[None]
    packed = logits(llama, ids.reshape(1, -1), position_ids=positions)
    torch.testing.assert_close(packed.reshape(2, LENGTH, -1), logits(llama, ids), atol=1e-5, rtol=1e-5)


def test_decoding_with_a_cache(llama: LlamaForCausalLM, ids: Tensor) -> None:
    with_log_n(llama)
    with torch.no_grad():
        prefill = llama(ids[:, :-1], use_cache=True)
        step = llama(ids[:, -1:], past_key_values=prefill.past_key_values).logits
    torch.testing.assert_close(step[:, -1], logits(llama, ids)[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:the model.s rotary frequencies are rounded")
def test_bfloat16_scales_in_float32(llama: LlamaForCausalLM, ids: Tensor) -> None:
    llama.to(torch.bfloat16)
    plain = logits(llama, ids)
    assert torch.equal(logits(with_log_n(llama), ids)[:, :L], plain[:, :L])


def test_sliding_window_layers_are_left_alone() -> None:
    """With every layer behind a window nothing changes; with one that sees all, something does."""
    for model_type, same in (("mistral", True), ("gemma2", False), ("gemma3_text", False)):
        model = tiny_model(model_type)
        model.set_attn_implementation("eager")
        ids = torch.randint(2, 100, (1, LENGTH))
        plain = logits(model, ids)
        assert torch.equal(logits(with_log_n(model, "eager"), ids), plain) is same


def test_exponent_is_read_back_and_restore_removes_it(llama: LlamaForCausalLM) -> None:
    for log_n, exponent in ((True, 1.0), (0.5, 0.5), (False, 0.0)):
        assert log_n_of(with_log_n(llama, log_n=log_n)) == exponent
        longwave.restore(llama)
        assert log_n_of(llama) == 0.0 and llama.config._attn_implementation == "sdpa"


def test_methods_bring_their_default(llama: LlamaForCausalLM) -> None:
    for method, exponent in (("clex", 1.0), ("clex-paper", 1.0), ("yarn", 0.0)):
        with longwave.extended(llama, method, max_factor=2) as model:
            assert log_n_of(host_of(model)) == exponent


def test_gradients_flow_through_it(llama: LlamaForCausalLM, ids: Tensor) -> None:
    longwave.extend(llama, "clex", max_factor=8)
    llama(ids, labels=ids).loss.backward()
    gradients = [p.grad for p in longwave.rotaries(llama)[0].trajectory.parameters()]
    assert any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("model_type", ["falcon", "deepseek_v32"])
def test_attention_that_cannot_have_it(model_type: str) -> None:
    """Falcon's does not use the interface; sparse attention asks for its name and would drop its mask."""
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match=r"cannot have log-n scaling.*Pass log_n=False"):
        longwave.extend(model, "ntk", max_factor=2, log_n=True)
    longwave.extend(model, "ntk", max_factor=2)


def flash_kernel(calls: list[dict[str, Any]]) -> Callable[..., Tensor]:
    """What the flash packages export, computed by the `sdpa` of torch: [batch, n, heads, d] in and out."""

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **others):
        calls.append({"dtype": q.dtype, "shape": tuple(q.shape)})
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    return flash_attn_func


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_flash_attention_finds_its_kernel_by_its_own_name(
    llama: LlamaForCausalLM, ids: Tensor, monkeypatch: pytest.MonkeyPatch, implementation: str
) -> None:
    """The flash attention of transformers itself, down to the package that cannot be installed without a GPU."""
    asked: list[str | None] = []
    calls: list[dict[str, Any]] = []
    kernel = flash_kernel(calls)

    def load(implementation: str | None, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        asked.append(implementation)
        return kernel, kernel, None, None, None

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", load)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    AttentionInterface.register("kernels-community/flash-attn2", flash_attention_forward)  # as its download does
    AttentionMaskInterface.register("kernels-community/flash-attn2", flash_attention_mask)
    expected = logits(with_log_n(llama), ids)
    longwave.restore(llama)
    llama.config._attn_implementation = implementation  # setting it would look for a GPU
    plain = logits(llama, ids)
    longwave.extend(llama, "none", max_factor=16, log_n=True, original_length=L)
    found = logits(llama, ids)
    assert torch.equal(found[:, :L], plain[:, :L])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert set(asked) == {implementation} and calls[-1]["shape"] == (2, LENGTH, 4, 16)
    assert is_flash_attention_requested(llama.config)  # what models and caches ask
    longwave.restore(llama)
    assert llama.config._attn_implementation == implementation
    assert torch.equal(logits(llama, ids), plain)


def test_a_flash_kernel_gets_flash_masks_and_its_own_layer(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """A registered implementation that looks at all that transformers' own looks at."""
    seen: list[dict[str, Any]] = []

    def my_flash(module, query, key, value, attention_mask, scaling=None, **kwargs):
        linear = next(part for part in module.modules() if isinstance(part, torch.nn.Linear))
        seen.append(
            {
                "name": module.config._attn_implementation,
                "layer": module.layer_idx,
                "causal": module.is_causal,
                "dtype": linear.weight.dtype,
                "hidden": module.config.hidden_size,
                "quantized": hasattr(module.config, "_is_quantized"),
                "mask": None if attention_mask is None else tuple(attention_mask.shape),
            }
        )
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)

    AttentionInterface.register("my_flash", my_flash)
    AttentionMaskInterface.register("my_flash", flash_attention_mask)
    llama.config._attn_implementation = "my_flash"
    longwave.extend(llama, "none", max_factor=16, log_n=True, original_length=L)
    mask = torch.ones_like(ids)
    logits(llama, ids, attention_mask=mask)
    mask[0, :5] = 0
    logits(llama, ids, attention_mask=mask)
    ours = {"name": "my_flash", "causal": True, "dtype": torch.float32, "hidden": 64, "quantized": False}
    assert seen == [
        {**ours, "layer": layer, "mask": shape} for shape in (None, (2, LENGTH)) for layer in (0, 1)
    ]  # two axes: a flash mask says what is padding
    assert llama.model.layers[0].self_attn.config is llama.config


def test_a_kernel_that_nobody_registered_is_refused(llama: LlamaForCausalLM) -> None:
    llama.config._attn_implementation = "kernels-community/paged-attention"
    with pytest.raises(ValueError, match=r"cannot have log-n scaling.*log_n=False"):
        longwave.extend(llama, "ntk", max_factor=2, log_n=True)
    with pytest.raises(ValueError, match="not extended"):
        longwave.rotaries(llama)
    longwave.extend(llama, "ntk", max_factor=2, log_n=False)


def test_one_name_for_every_setting(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """The setting is the model's: other models, other settings and copies add no name and do not meddle."""
    other = copy.deepcopy(llama)
    expected = {log_n: logits(with_log_n(copy.deepcopy(llama), log_n=log_n), ids) for log_n in (0.25, 0.75)}
    known = set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)
    with_log_n(llama, log_n=0.25), with_log_n(other, log_n=0.75)
    for length in (16, 32):
        longwave.extend(copy.deepcopy(longwave.restore(copy.deepcopy(llama))), "none", max_factor=2, log_n=length / 100,
                        original_length=length)  # fmt: skip
    count_keys(other, True), count_keys(other, False)
    assert (set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)) == known
    assert (log_n_of(llama), log_n_of(other)) == (0.25, 0.75)
    assert torch.equal(logits(llama, ids), expected[0.25]) and torch.equal(logits(other, ids), expected[0.75])

    twin = copy.deepcopy(llama)
    longwave.restore(llama)
    assert (log_n_of(llama), log_n_of(twin)) == (0.0, 0.25)
    assert torch.equal(logits(twin, ids), expected[0.25])
    assert not any("longwave" in name for layer in llama.model.layers for name in vars(layer.self_attn))


@pytest.mark.slow
def test_a_pickled_model_runs_in_another_process(llama: LlamaForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    with_log_n(llama, "eager", log_n=0.5)
    torch.save(llama.model, tmp_path / "model.pt")
    torch.save(ids, tmp_path / "ids.pt")
    code = """
import sys, torch
model, ids = (torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=False) for name in ("model", "ids"))
with torch.no_grad():
    torch.save(model(ids, use_cache=False).last_hidden_state, f"{sys.argv[1]}/out.pt")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = llama.model(ids, use_cache=False).last_hidden_state
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["sdpa", "my_compiled_flash"])
def test_a_compiled_model_scales_too(llama: LlamaForCausalLM, ids: Tensor, implementation: str) -> None:
    def my_flash(module, query, key, value, attention_mask, scaling=None, **kwargs):
        assert module.config._attn_implementation == "my_compiled_flash"
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)

    AttentionInterface.register("my_compiled_flash", my_flash)
    AttentionMaskInterface.register("my_compiled_flash", flash_attention_mask)
    expected = logits(with_log_n(llama), ids)
    longwave.restore(llama)
    llama.config._attn_implementation = implementation
    longwave.extend(llama, "none", max_factor=16, log_n=True, original_length=L)
    longwave.set_length(llama, "fixed", 1.0)
    compiled = torch.compile(llama, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, ids), expected, atol=1e-5, rtol=1e-5)


def test_log_n_outlives_what_is_done_to_an_extended_model(llama: LlamaForCausalLM, ids: Tensor) -> None:
    expected = logits(with_log_n(llama, log_n=0.5), ids)
    with suspended(llama):
        assert log_n_of(llama) == 0.0 and llama.config._attn_implementation == "sdpa"
    assert torch.equal(logits(llama, ids), expected)
    with frozen(llama, 2.0):
        assert log_n_of(llama) == 0.0
    assert log_n_of(llama) == 0.5 and torch.equal(logits(llama, ids), expected)


@pytest.mark.parametrize("log_n", [1e-5, 0.5, 2.0])
def test_any_attention_name_and_exponent_is_read_back(llama: LlamaForCausalLM, ids: Tensor, log_n: float) -> None:
    AttentionInterface.register("my-own-sdpa", sdpa_attention_forward)
    AttentionMaskInterface.register("my-own-sdpa", sdpa_mask)
    expected = logits(with_log_n(llama, log_n=log_n), ids)
    longwave.restore(llama)
    with_log_n(llama, "my-own-sdpa", log_n=log_n)
    assert log_n_of(llama) == log_n and torch.equal(logits(llama, ids), expected)
    longwave.restore(llama)
    assert llama.config._attn_implementation == "my-own-sdpa"


@pytest.mark.parametrize("log_n", [float("nan"), float("inf"), -1.0])
def test_an_exponent_that_is_no_exponent(llama: LlamaForCausalLM, log_n: float) -> None:
    with pytest.raises(ValueError, match=f"an exponent >= 0, got {log_n}"):
        with_log_n(llama, log_n=log_n)


def test_a_vision_tower_keeps_its_attention() -> None:
    """Its attention has no position ids to scale by, and may be another one than the text model's."""
    config = tiny_config("gemma3")
    config.mm_tokens_per_image, config.image_token_id = 49, 127
    model = AutoModelForCausalLM.from_config(config).eval()
    config = model.config
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    text = torch.randint(2, 100, (1, 10))
    image = torch.full((1, config.mm_tokens_per_image), config.image_token_id)
    ids = torch.cat([text, image, text], dim=1)
    size = config.vision_config.image_size
    inputs = {"pixel_values": torch.randn(1, 3, size, size), "token_type_ids": (ids == config.image_token_id).long()}
    plain = logits(model, ids, **inputs)
    longwave.extend(model, "none", max_factor=8, log_n=True, original_length=16)
    assert log_n_of(model) == 1.0 and config.vision_config._attn_implementation == "eager"
    assert not torch.equal(logits(model, ids, **inputs), plain)
    longwave.restore(model)
    assert (config.vision_config._attn_implementation, config.text_config._attn_implementation) == ("eager", "sdpa")
    assert torch.equal(logits(model, ids, **inputs), plain)


@pytest.mark.parametrize("model_type", ["persimmon", "llama4_text", "granitemoehybrid", "zaya", "moshi"])
def test_attention_without_positions_is_refused_by_extend(model_type: str) -> None:
    """By the attention itself, its layer or the model around it; not in the first forward, after the weights came."""
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match=r"Attention hands no position_ids to the attention function.*log_n=False"):
        longwave.extend(model, "ntk", max_factor=4, log_n=True)
    longwave.extend(model, "ntk", max_factor=4)


def test_counting_keys_ignores_where_the_tokens_are_said_to_stand(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """In training a row of n tokens may claim positions up to tL; log-n then follows the keys there are."""
    gaps = torch.arange(LENGTH)[None] * 3
    inputs = {"position_ids": gaps, "attention_mask": torch.ones_like(ids)}
    with_log_n(llama)
    count_keys(llama, True)
    short = {name: value[:, :L] for name, value in inputs.items()}
    counted, counted_short = logits(llama, ids, **inputs), logits(llama, ids[:, :L], **short)
    assert log_n_of(llama) == 1.0
    count_keys(llama, False)
    assert not torch.allclose(logits(llama, ids, **inputs), counted)
    longwave.restore(llama)
    longwave.extend(llama, "none", max_factor=8, log_n=False, original_length=L)
    assert torch.equal(logits(llama, ids[:, :L], **short), counted_short)  # no query sees more than L keys
    # without gaps, keys and positions are the same count
    longwave.restore(llama)
    with_log_n(llama)
    by_position = logits(llama, ids)
    count_keys(llama, True)
    assert torch.equal(logits(llama, ids), by_position)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [1, 7, 300])
def test_grouped_decode_equals_the_attention_of_transformers(dtype: torch.dtype, keys: int) -> None:
    module = torch.nn.Module()
    module.num_key_value_groups = 7
    query = torch.randn(2, 14, 1, 64, dtype=dtype)
    key, value = torch.randn(2, 2, 2, keys, 64, dtype=dtype)
    expected = sdpa_attention_forward(module, query, key, value, None, scaling=0.1)[0]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(_decode(query, key, value, scaling=0.1)[0], expected, atol=tolerance, rtol=tolerance)


def test_decode_takes_the_grouped_path_and_only_then(llama: LlamaForCausalLM, ids: Tensor) -> None:
    with_log_n(llama)
    seen: list[tuple[int, ...]] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(tuple(query.shape[1:3]))
        return attention(query, *args, **kwargs)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("longwave.attention.kernels.scaled_dot_product_attention", watched)
        cache = llama(ids, use_cache=True).past_key_values
        assert not seen
        llama(ids[:, :1], past_key_values=cache)
    assert seen == [(2, 2), (2, 2)]  # 2 key heads, 2 query heads to each, in both layers


def test_positions_counted_up_in_place_count(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """A static decode loop keeps one tensor of positions: what was computed for it must not outlive its values."""
    with_log_n(llama)
    position = torch.tensor([[LENGTH]])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            cache = llama(ids[:1], use_cache=True).past_key_values
            for step in range(2):
                reused = llama(ids[:1, :1], past_key_values=copy.deepcopy(cache), position_ids=position).logits
                fresh = llama(
                    ids[:1, :1],
                    past_key_values=copy.deepcopy(cache),
                    position_ids=torch.tensor([[LENGTH + 300 * step]]),
                ).logits
                assert torch.equal(reused, fresh)
                position += 300
            position -= 600
