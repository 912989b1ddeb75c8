"""What selections choose, by identities, and without the faults of the official programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longwave.attention import get_attention, gpu_dot
from longwave.attention.dot import dot, torch_dot
from longwave.attention.engine import Scoring, dense
from longwave.attention.infllm import InfLLM
from longwave.attention.layout import Layout
from longwave.attention.ms_poe import MsPoE
from longwave.attention.placement import place
from longwave.attention.quest import Quest
from longwave.attention.rows import Row
from longwave.attention.selection import top
from longwave.attention.spectrum import Spectrum
from longwave.attention.streaming import StreamingLLM
from longwave.attention.token_select import Anchor, TokenSelect

N, D = 80, 16
LENGTHS = {"original_length": 64, "max_factor": 4}
THETA = 20.0 ** -(torch.arange(D // 2, dtype=torch.float64) / (D // 2))
SPECTRUM = Spectrum(THETA, THETA, 1.1)  # an attention scaling, which must reach keys at place 0, too


def whole_row(heads: int = 4, key_heads: int = 2, tokens: int = N, dtype: torch.dtype = torch.float64) -> Row:
    q, k, v = (torch.randn(1, count, tokens, D).to(dtype) for count in (heads, key_heads, key_heads))
    return Row(q, k, v, Layout(), SPECTRUM, D**-0.5)


def expected(row, bands):
    positions = torch.arange(row.stop)[None]
    return dense(row.q, row.k, row.v, place(bands, SPECTRUM, positions, positions), Scoring(Layout(), row.scale))


def decode(method, row, prompt):
    """The prompt in one forward, then token by token."""
    found, memory = method.attend(row.part(0, prompt), None) if prompt else (row.q[:, :, :0], None)
    parts = [found]
    for p in range(prompt, row.stop):
        found, memory = method.attend(replace(row.part(p, p + 1), decoding=p > 0), memory)
        parts.append(found)
    return torch.cat(parts, 2)


FULL = get_attention("quest").create(**LENGTHS).bands(4.0)


def test_token_select_without_chosen_keys_is_streaming_llm():
    streaming = StreamingLLM.create(**LENGTHS, sinks=4, window=12)
    method = TokenSelect.create(**LENGTHS, sinks=4, window=12, top_k=0, chunk=1, threshold=2.0)
    row = whole_row()
    assert torch.allclose(method.attend(row, None)[0], expected(row, streaming.bands(4.0)), atol=1e-12)
    assert torch.allclose(decode(method, row, 20), expected(row, streaming.bands(4.0)), atol=1e-12)


@pytest.mark.parametrize("prompt", [N, 50, 0])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TokenSelect, {"sinks": 4, "window": 16, "top_k": N - 20}),
        (Quest, {"page": 8, "budget": N}),
        (MsPoE, {"ratio_min": 1.0, "ratio_max": 1.0}),
    ],
)
def test_with_all_keys_it_is_full_attention(kind, options, prompt):
    method, row = kind.create(**LENGTHS, **options), whole_row()
    if method.stored is not None:
        row = replace(row, q=row.turn(row.q, row.positions), k=row.turn(row.k, row.positions))
    placed = place(
        FULL, SPECTRUM, torch.arange(N)[None], torch.arange(N)[None], FULL[0] if method.stored == 0 else None
    )
    full = dense(row.q, row.k, row.v, placed, Scoring(Layout(), row.scale))
    assert torch.allclose(decode(method, row, prompt), full, atol=1e-12)


@pytest.mark.parametrize("prompt", [N, 30, 0])
@pytest.mark.parametrize(("sinks", "block"), [(0, 5), (3, 4), (70, 4)])
def test_infllm_with_all_blocks_is_rerope_at_the_last_distance_of_the_window(sinks, block, prompt):
    method = InfLLM.create(**LENGTHS, sinks=sinks, window=16, block=block, top_blocks=99, chunk=8)
    row = whole_row()
    assert torch.allclose(decode(method, row, prompt), expected(row, method.bands(4.0)), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_vote_reads_the_keys_of_its_own_key_head_and_sums_in_float32(dtype):
    # The official kernel reads key head h mod H_kv, and votes in bfloat16, where most softmax values become 0.
    row = whole_row(heads=6, key_heads=3, dtype=dtype)
    q = 20 * torch.randn(6, D)
    scores = torch_dot(q, row.k[0], 3, 50)
    assert scores.dtype == torch.float32
    for head in range(6):
        alone = (row.k[0, head // 2, 3:50].double() @ q[head].double()).float()
        assert torch.allclose(scores[head], alone, rtol=1e-5, atol=1e-4)


def test_the_kernel_for_a_gpu_is_the_product_in_pytorch():
    triton = pytest.importorskip("triton", reason="the kernel for a GPU needs Triton")
    if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
        pytest.skip("the kernel for a GPU needs one, or TRITON_INTERPRET=1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for width, group, dtype in ((64, 7, torch.bfloat16), (80, 1, torch.float32)):
        q, k = torch.randn(2 * group, width, device=device), torch.randn(2, 1000, width, device=device).to(dtype)
        k = k[:, :900]  # a view: keys are not copied
        expected = torch_dot(q, k, 5, 890)
        assert torch.allclose(gpu_dot.dot(q, k, 5, 890), expected, atol=1e-3)
        if device == "cuda":
            assert torch.allclose(dot(q, k, 5, 890), expected, atol=1e-3)


@pytest.mark.parametrize("length", [2, 3, 8, 20, 64, 256, 2048, 8192, 131072])
def test_defaults_stay_within_L(length):
    for name in ("token-select", "infllm"):
        method = get_attention(name).create(original_length=length, max_factor=16)
        assert method.factor(16.0) == 1.0
        assert 1 <= method.prefill_chunk <= method.w
    assert get_attention("token-select").create(original_length=length, max_factor=16).budget <= min(length, 2688)
    assert get_attention("quest").create(original_length=length, max_factor=16).pages >= 1


def test_of_equal_values_the_first_ones_are_taken():
    values = torch.tensor([[1.0, 3, 2, 2, 2, 0], [0, 0, 0, 0, 0, 0]])
    assert top(values, 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert top(values, 0).shape == (2, 0)
    assert top(values[0], 9).tolist() == [0, 1, 2, 3, 4, 5]
    assert top(torch.tensor([float("nan"), 1, float("-inf"), float("nan")]), 2).tolist() == [0, 1]


def test_no_token_vanishes_while_a_choice_serves_and_no_distance_reaches_L():
    method = TokenSelect.create(**LENGTHS, sinks=4, window=12, top_k=8, threshold=-1.0)
    row, memory, hits = whole_row(tokens=160), None, 0
    _, memory = method.attend(row.part(0, 40), memory)
    for p in range(40, 160):
        before = memory
        choice, memory = method.choose(replace(row.part(p, p + 1), decoding=True), memory)
        hits += memory is before
        assert int(choice.near[0]) <= p - 11  # the window, and what left it since the choice
        assert int(choice.listed.max()) < int(choice.near[0]) <= memory.start
        assert int(choice.query[0]) < 64
    assert hits > 80


def test_a_choice_serves_in_decoding_alone_and_only_like_queries():
    # The official cache of choices is switched off: it cannot run, and would serve in a prompt, too.
    method = TokenSelect.create(**LENGTHS, sinks=4, window=12, top_k=8)
    row = whole_row()
    _, memory = method.attend(row.part(0, 60), None)
    assert memory is None
    step = replace(row.part(60, 61), decoding=True)
    _, first = method.choose(step, memory)
    following = replace(row.part(61, 62), decoding=True)
    assert isinstance(first, Anchor)
    assert method.choose(replace(following, q=2 * step.q), first)[1] is first
    assert method.choose(replace(following, q=-step.q), first)[1] is not first
    never = replace(method, threshold=1.5)
    assert never.choose(replace(following, q=step.q), first)[1] is not first


def test_the_newest_page_of_quest_is_always_seen():
    method = Quest.create(**LENGTHS, page=8, budget=16)
    row = whole_row()
    row.k[:, :, -3:] = 0.0
    choice, _ = method.choose(replace(row.part(N - 1, N), decoding=True), None)
    assert (choice.listed == N - 1).any(-1).all()
    scored, _ = replace(method, last_page="scored").choose(replace(row.part(N - 1, N), decoding=True), None)
    assert not torch.equal(scored.listed, choice.listed)


def test_the_head_of_ms_poe_with_most_outliers_divides_least():
    method = MsPoE.create(**LENGTHS, share="head")
    row = whole_row(heads=3, key_heads=3)
    row.q[0, :, -1] = 0.0  # even attention: no outlier
    row.q[0, 1, -1] = 40 * row.k[0, 1, :2].sum(0)  # two outliers, or one
    row.q[0, 2, -1] = 3 * row.k[0, 2, 7]
    ratios = method.ratios(row)
    assert ratios[0] == max(ratios)
    assert torch.equal(ratios.sort().values, torch.tensor([1.2, 1.4, 1.6], dtype=torch.float64))
    official = replace(method, order="official").ratios(row)
    order = ratios.argsort()
    assert torch.equal(official, ratios.sort().values[order])
