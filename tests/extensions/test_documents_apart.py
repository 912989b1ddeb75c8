"""Several documents in a row are the documents alone: logits, gradients, whatever the method and the positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, modeling_flash_attention_utils

import longwave
from longwave.extensions.adapter import LoRA
from longwave.extensions.documents import documents_apart, forget_documents, prepare_documents
from longwave.extensions.handle import extension
from longwave.extensions.steering import attention_of, count_keys

T = 6.0
SIZES = ((90, 1, 37, 150), (200, 3, 75))  # documents of two rows of 278 tokens; L is 64


def skipped(size: int) -> Tensor:
    """Positions that skip within a document, and begin at 0: its other half stands near 6 L."""
    places = torch.arange(size)
    return torch.where(places < size // 2, places, places + 6 * 64 - size)


def rows(skips: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, position ids and document ids of two rows of packed documents."""
    positions = [torch.cat([skipped(n) if skips else torch.arange(n) for n in sizes]) for sizes in SIZES]
    documents = [torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)]) for sizes in SIZES]
    ids = torch.randint(1, 128, (2, 278), generator=torch.Generator().manual_seed(1))
    return ids, torch.stack(positions), torch.stack(documents)


def separate(model: PreTrainedModel, ids: Tensor, positions: Tensor) -> Tensor:
    """Logits of every document alone, laid out as the rows are."""
    found = []
    for row, sizes in enumerate(SIZES):
        for own, places in zip(ids[row].split(sizes), positions[row].split(sizes), strict=True):
            mask = torch.ones(1, len(own), dtype=torch.long)
            found.append(model(own[None], attention_mask=mask, position_ids=places[None], use_cache=False).logits[0])
    return torch.cat(found).view(2, 278, -1)


def packed(model: PreTrainedModel, ids: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
    """Logits of the rows, with the documents in force."""
    with documents_apart(model, documents):
        mask = torch.ones_like(ids)
        return model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def ready(model: PreTrainedModel, method: str, *, log_n: float, by_keys: bool = True, **parts: Any) -> PreTrainedModel:
    """The model extended as training has it: a drawn t, log-n by keys, every learned parameter off its start."""
    longwave.extend(model, method, max_factor=8, log_n=log_n, original_length=64, **parts)
    for parameter in (p for found in extension(model).learned.values() for p in found):
        torch.nn.init.normal_(parameter, std=0.3)
    if extension(model).adapter is not None:
        for parameter in extension(model).adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    count_keys(model, by_keys)
    extension(model).dial.set(factor=T)
    prepare_documents(model)
    return model


def losses_alike(model: PreTrainedModel, skips: bool) -> None:
    """Logits and all gradients of packed rows are those of the documents alone."""
    ids, positions, documents = rows(skips)
    with torch.no_grad():
        one = packed(model, ids, positions, documents)
        torch.testing.assert_close(one, separate(model, ids, positions), atol=1e-5, rtol=1e-5)
        joined = model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(278)[None]).logits
        assert not torch.allclose(one[:, 200:], joined[:, 200:], atol=1e-2)  # the documents do matter
    learned = [p for p in model.parameters() if p.requires_grad]
    both = []
    for logits in (lambda: packed(model, ids, positions, documents), lambda: separate(model, ids, positions)):
        loss = cross_entropy(logits().flatten(0, 1), ids.flatten())
        both.append(torch.autograd.grad(loss, learned, allow_unused=True))
    assert any(p is not None and bool(p.any()) for p in both[0])
    for mine, theirs in zip(*both, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-5)


CASES = [
    *[("llama", method, True) for method in ("clex", "ntk", "two-band", "clex+two-band", "dca")],
    *[("gpt_neox", method, True) for method in ("clex", "two-band")],
    ("llama", "clex+two-band", False),
]


@pytest.mark.slow
@pytest.mark.parametrize("log_n", [0.0, 1.0])
@pytest.mark.parametrize(("family", "method", "skips"), CASES)
def test_packed_documents_are_separate_ones(family: str, method: str, skips: bool, log_n: float) -> None:
    losses_alike(ready(tiny_model(family), method, log_n=log_n), skips)


@pytest.mark.parametrize("by_keys", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_scalars_of_heads_and_a_lora_learn_the_same(family: str, by_keys: bool) -> None:
    parts = {"head_scalars": True, "adapter": LoRA(4, 4.0)}
    model = ready(tiny_model(family), "two-band", log_n=0.0, by_keys=by_keys, **parts)
    losses_alike(model, skips=True)


@pytest.mark.parametrize(
    ("family", "implementation"), [("mistral", "eager"), ("mistral", "sdpa"), ("gemma2", "eager"), ("cohere2", "sdpa")]
)
def test_windows_of_local_layers_are_counted_within_a_document(family: str, implementation: str) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    ids, positions, documents = rows(skips=False)
    prepare_documents(model)
    with torch.no_grad():
        together, alone = packed(model, ids, positions, documents), separate(model, ids, positions)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    forget_documents(model)
    assert attention_of(model) == implementation


def test_flash_kernels_get_the_edges_of_all_documents(llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the package that cannot be installed without a GPU: the kernel for sequences one behind the other."""
    calls = []

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **others):
        calls.append((cu_seqlens_q.tolist(), max_seqlen_q))
        return torch.zeros_like(q)

    lazy = (None, varlen, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: lazy)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    llama.config._attn_implementation = "flash_attention_2"
    ids, positions, documents = rows(skips=True)
    prepare_documents(llama)
    packed(llama, ids, positions, documents)
    assert calls == 2 * [([0, 90, 91, 128, 278, 478, 481, 556], 200)]


def test_documents_are_in_force_for_their_model_alone(llama, neox) -> None:
    ids, _positions, documents = rows(skips=False)
    for model in (llama, neox):
        prepare_documents(model)
    other = neox(ids).logits
    with documents_apart(llama, documents):
        assert torch.equal(neox(ids).logits, other)
    assert torch.equal(neox(ids).logits, other)


@pytest.mark.parametrize(
    ("family", "said"),
    [("jamba", "1 of its 2 layers carry text on without attention"), ("mamba", "does not go through the interface")],
)
def test_models_whose_text_flows_on_are_refused(family: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepare_documents(tiny_model(family))


def test_methods_that_remember_are_refused(llama) -> None:
    ids, positions, documents = rows(skips=False)
    ready(llama, "infllm", log_n=0.0)
    with pytest.raises(ValueError, match="infllm remembers one text for each row"):
        packed(llama, ids, positions, documents)


def test_ids_of_another_length_are_refused(llama) -> None:
    ids, positions, documents = rows(skips=False)
    prepare_documents(llama)
    with pytest.raises(ValueError, match=r"document ids are of 100 tokens, and attention has 278 queries"):
        packed(llama, ids, positions, documents[:, :100])
