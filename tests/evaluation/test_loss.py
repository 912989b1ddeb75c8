"""The blockwise loss is the plain loss, whatever a model does between hidden states and logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import longwave
from longwave.evaluation.loss import Scorer

VOCABULARY = 97
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}

# Families whose logits are more than a matrix product of the last hidden states.
FAMILIES = {
    "llama": {},
    "gpt_neox": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 7.0},
    "opt": {},  # the head hangs on a decoder inside the base model
    "mixtral": {},  # the base model returns router logits, too
}


def build(family: str) -> nn.Module:
    config = AutoConfig.for_model(family, **SIZES)
    for name, value in FAMILIES[family].items():
        assert hasattr(config, name)
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)  # initial weights give nearly uniform logits, which would hide a lot
    return model


@torch.no_grad()
def plain(model: nn.Module, rows: Tensor) -> Tensor:
    log_p = model(input_ids=rows).logits[:, :-1].float().log_softmax(-1)
    return -log_p.gather(-1, rows[:, 1:, None])[..., 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [1, 7, 39])
def test_blocks_equal_the_plain_loss(family: str, last: int) -> None:
    model = build(family)
    rows = torch.randint(0, VOCABULARY, (3, 40))
    scorer = Scorer(model, block_elements=3 * 5 * VOCABULARY)
    found = scorer.nll(rows, last)
    assert scorer.backbone is not None
    torch.testing.assert_close(found, plain(model, rows)[:, -last:], rtol=1e-5, atol=1e-5)


def test_blocks_are_small(llama: LlamaForCausalLM) -> None:
    sizes = []
    llama.lm_head.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
    Scorer(llama, block_elements=2 * 10 * 256).nll(torch.randint(0, 256, (2, 60)), 59)
    assert max(sizes) <= 2 * 10 * 256
    assert sizes[-6:] == [2 * 10 * 256] * 5 + [2 * 9 * 256]


def test_hits_are_those_of_greedy_prediction(llama: LlamaForCausalLM) -> None:
    rows = torch.randint(0, 256, (2, 30))
    rows[0, -1] = llama(input_ids=rows).logits[0, -2].argmax()
    hits = Scorer(llama).hits(rows, 4)
    assert torch.equal(hits, llama(input_ids=rows).logits[:, -5:-1].argmax(-1) == rows[:, -4:])
    assert bool(hits[0, -1])


class Unusual(LlamaForCausalLM):
    """Its logits depend on the ids of the call, not on hidden states alone."""

    def forward(self, input_ids: Tensor, **kwargs: object) -> object:
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + torch.sin(input_ids[:, -output.logits.shape[1] :, None].float())
        output.logits[..., 0] += input_ids[:, -output.logits.shape[1] :]
        return output


def test_a_head_that_needs_more_is_run_plainly(llama: LlamaForCausalLM) -> None:
    model = Unusual(llama.config).eval()
    rows = torch.randint(0, 256, (2, 30))
    with pytest.warns(UserWarning, match="Unusual cannot run its head"):
        found = Scorer(model).nll(rows, 9)
    torch.testing.assert_close(found, plain(model, rows)[:, -9:])


def test_an_extended_model(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=True)
    rows = torch.randint(0, 256, (2, 200))
    torch.testing.assert_close(Scorer(llama).nll(rows, 199), plain(llama, rows))


def test_a_peft_wrapped_model(llama: LlamaForCausalLM) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra longwave[peft]")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama, config).eval()
    rows = torch.randint(0, 256, (2, 60))
    torch.testing.assert_close(Scorer(model).nll(rows, 59), plain(model, rows))


def test_bfloat16_weights_give_a_float32_loss(llama: LlamaForCausalLM) -> None:
    rows = torch.randint(0, 256, (2, 30))
    expected = Scorer(llama).nll(rows, 29)
    found = Scorer(llama.to(torch.bfloat16)).nll(rows, 29)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("last", [0, 30])
def test_refuses_what_has_no_context(llama: LlamaForCausalLM, last: int) -> None:
    with pytest.raises(ValueError, match="choose 1 to 29"):
        Scorer(llama).nll(torch.zeros(1, 30, dtype=torch.long), last)


def test_the_model_is_left_as_it_was(llama: LlamaForCausalLM) -> None:
    before = dict(vars(llama.model))
    Scorer(llama).nll(torch.randint(0, 256, (1, 30)), 5)
    assert vars(llama.model) == before
