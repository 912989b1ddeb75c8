"""Selections and Ms-PoE against an independent dense program: outputs, lists, and what every query sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from selection_cases import TYPES, golden_case, run_rows

from longwave.attention import get_attention
from longwave.attention.infllm import InfLLM
from longwave.attention.ms_poe import MsPoE
from longwave.attention.quest import Quest
from longwave.attention.rows import Row
from longwave.attention.selection import Choice, Selection
from longwave.attention.token_select import TokenSelect

TOKENS = 96
LENGTHS = {"original_length": 48, "max_factor": 2}
TOKEN_SELECT = (
    "23-token-select", "24-token-select", "25-token-select", "26-token-select", "27-token-select", "28-token-select",
)  # fmt: skip
INFLLM, QUEST = ("29-infllm", "30-infllm"), ("31-quest", "32-quest")
MS_POE = ("20-ms-poe", "21-ms-poe", "22-ms-poe")


def watch(monkeypatch: pytest.MonkeyPatch, kind: type[Selection]) -> list[tuple[list[int], Choice, Any, Any]]:
    """From here on the chunks of a selection: their positions, what they saw, and the memory before and after."""
    seen, choose = [], kind.choose

    def watched(self: Selection, row: Row, memory: Any) -> tuple[Choice, Any]:
        choice, after = choose(self, row, memory)
        seen.append((row.positions.tolist(), choice, memory, after))
        return choice, after

    monkeypatch.setattr(kind, "choose", watched)
    return seen


def visible(seen: list[tuple[list[int], Choice, Any, Any]], heads: int = 1) -> np.ndarray:
    """[heads, queries, keys]."""
    found = np.zeros((heads, TOKENS, TOKENS), dtype=bool)
    for positions, choice, _, _ in seen:
        for at, p in enumerate(positions):
            if choice.near is not None:
                found[:, p, int(choice.near[at]) : p + 1] = True
            if choice.listed is not None:
                for head, columns in enumerate(choice.listed[0].expand(heads, -1)):
                    listed = columns[(columns >= 0) & (p - columns >= choice.least)]
                    assert not found[head, p, listed].any()  # no key twice
                    found[head, p, listed] = True
    return found


def options_of(case):
    return {"threshold": 2.0, **case.options} if case.about["method"] == "token-select" else case.options


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", [*MS_POE, *TOKEN_SELECT, *INFLLM, *QUEST])
def test_outputs(shared, name, dtype):
    case = golden_case(shared, name)
    share = {"share": "head"} if case.about["method"] == "ms-poe" else {}
    method = get_attention(case.about["method"]).create(**LENGTHS, **{**share, **options_of(case)})
    with torch.no_grad():
        found = run_rows(method, case, dtype)
    assert (found.double() - case.tensor("output")).abs().max() < TYPES[dtype]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", TOKEN_SELECT)
def test_lists_hits_and_distances_of_token_select(shared, monkeypatch, name, dtype):
    case = golden_case(shared, name)
    seen, method = watch(monkeypatch, TokenSelect), TokenSelect.create(**LENGTHS, **options_of(case))
    with torch.no_grad():
        run_rows(method, case, dtype)
    distance = np.full((TOKENS, TOKENS), np.nan)
    for positions, choice, before, after in seen:
        chosen = np.full(case.options["top_k"], -1)
        if choice.listed is not None:
            chosen = choice.listed[0, 0, method.a :].numpy()
        hit = before is not None and after is before and choice.listed is not None
        for at, p in enumerate(positions):
            assert (case.arrays["selected"][p] == chosen).all()
            assert case.arrays["hits"][p] == hit
            near = np.arange(int(choice.near[at]), p + 1)
            distance[p, near] = p - near
            if choice.listed is not None:
                distance[p, choice.listed[0, 0]] = choice.query[at] - choice.key
    assert (visible(seen)[0] == case.arrays["visible"]).all()
    pairs = case.arrays["visible"]
    assert (distance[pairs] == case.arrays["distance"][pairs]).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", INFLLM)
def test_blocks_of_infllm(shared, monkeypatch, name, dtype):
    case = golden_case(shared, name)
    seen, method = watch(monkeypatch, InfLLM), InfLLM.create(**LENGTHS, **case.options)
    with torch.no_grad():
        run_rows(method, case, dtype)
    assert (visible(seen)[0] == case.arrays["visible"]).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", QUEST)
def test_pages_of_quest(shared, monkeypatch, name, dtype):
    case = golden_case(shared, name)
    seen, method = watch(monkeypatch, Quest), Quest.create(**LENGTHS, **case.options)
    with torch.no_grad():
        run_rows(method, case, dtype)
    decoded = slice(case.prefill, None)
    assert (visible(seen, 4)[:, decoded] == case.arrays["visible"][:, decoded]).all()


@pytest.mark.parametrize("name", MS_POE)
def test_ratios_of_ms_poe(shared, name):
    case = golden_case(shared, name)
    method = MsPoE.create(**LENGTHS, **{"share": "head", **case.options})
    ratios = method.ratios(case.row(0, TOKENS, torch.float64))
    expected = case.tensor("ratio")
    if method.share == "key":
        ratios = ratios.repeat_interleave(2)
    assert torch.allclose(ratios, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "part"), [("23-token-select", 32), ("24-token-select", 16), ("29-infllm", 24)])
def test_a_prompt_in_parts_of_whole_chunks_is_the_prompt(shared, name, part):
    case = golden_case(shared, name)
    method = get_attention(case.about["method"]).create(**LENGTHS, **options_of(case))
    with torch.no_grad():
        assert torch.equal(run_rows(method, case, torch.float64, part), run_rows(method, case, torch.float64))
