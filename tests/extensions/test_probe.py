"""How the rotation of a model's layers is found out, and that the model is afterwards as it was."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import CohereConfig, CohereForCausalLM, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import longwave
from longwave.extensions.handle import find_extension
from longwave.extensions.probe import NAME, SEEN
from longwave.extensions.steering import steering_of

COHERE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2,
}  # fmt: skip


def cohere() -> CohereForCausalLM:
    torch.manual_seed(1)
    return CohereForCausalLM(CohereConfig(**COHERE)).eval()


def layout_of(model: Any) -> Any:
    steering = steering_of(model)
    assert steering is not None
    return steering.bands.layout


def test_every_module_keeps_its_mode(llama: LlamaForCausalLM) -> None:
    llama.train()
    llama.model.layers[0].eval()
    before = {name: module.training for name, module in llama.named_modules() if "rotary" not in name}
    longwave.extend(llama, "two-band", max_factor=4)
    assert {name: module.training for name, module in llama.named_modules() if "rotary" not in name} == before


def test_nothing_of_the_probe_is_left(llama: LlamaForCausalLM) -> None:
    function = ALL_ATTENTION_FUNCTIONS[NAME]
    longwave.extend(llama, "two-band", max_factor=4)
    assert ALL_ATTENTION_FUNCTIONS[NAME] is function
    assert not any(hasattr(layer, SEEN) for layer in llama.modules())


def test_models_are_extended_in_several_threads() -> None:
    """Each finds its own rotation: Llama turns halves, Cohere turns neighbours."""
    found: list[Any] = []

    def extend() -> None:
        for _ in range(10):
            model = longwave.extend(cohere(), "leaky-rerope", max_factor=4)
            found.append(layout_of(model))

    threads = [threading.Thread(target=extend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and all(layout.interleaved for layout in found)


@torch.no_grad()
def test_a_model_that_was_extended_without_weights_is_extended_again() -> None:
    ready = cohere()
    with init_empty_weights():
        model = CohereForCausalLM(CohereConfig(**COHERE))
    longwave.extend(model, "leaky-rerope", max_factor=4)
    model.load_state_dict(ready.state_dict(), assign=True)
    model.tie_weights()
    model.eval()
    ids = torch.randint(1, 97, (1, 80))
    assert torch.equal(model(ids[:, :32]).logits, ready(ids[:, :32]).logits)  # within L it is the plain model
    with pytest.raises(ValueError, match=r"extended by leaky-rerope before it had its weights\. Restore and extend"):
        model(ids)
    longwave.restore(model)
    for each in (model, ready):
        longwave.extend(each, "leaky-rerope", max_factor=4)
    assert torch.equal(model(ids).logits, ready(ids).logits)


def test_layers_on_several_devices_are_refused_at_once(llama: LlamaForCausalLM) -> None:
    llama.hf_device_map = {"model": 0, "lm_head": 1}
    with pytest.raises(ValueError) as refused:
        longwave.extend(llama, "two-band", max_factor=4)
    assert "its layers are on 2 devices. Load it on one" in str(refused.value) and "\n" not in str(refused.value)
    assert find_extension(llama) is None


def test_dropout_of_attention_weights_matters_in_training_only(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(1, 97, (1, 80))
    plain = longwave.extend(copy.deepcopy(llama), "two-band", max_factor=4).eval()
    llama.config.attention_dropout = 0.1
    for layer in llama.model.layers:
        layer.self_attn.attention_dropout = 0.1
    longwave.extend(llama, "two-band", max_factor=4).eval()
    assert torch.equal(llama(ids).logits, plain(ids).logits)
    llama.train()
    with pytest.raises(ValueError, match="two-band has no dropout"):
        llama(ids)
