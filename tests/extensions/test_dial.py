"""The dial alone, and what several threads, copies and nested holds make of it."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, TextStreamer

import longwave
from longwave.extensions.dial import Dial, lock_of
from longwave.schedule import Continuous, factor_of, tokens_at

L = 64
GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def dial(**options: Any) -> Dial:
    return Dial(L, 8.0, Continuous(), **options)


def test_a_batch_has_a_t_for_each_row_and_each_packed_sequence() -> None:
    assert dial().read(torch.arange(128)[None]) == 2.0
    rows = torch.stack([torch.arange(128) - 32, torch.arange(128)]).clamp(min=0)  # 32 columns of padding in front
    assert [set(row) for row in dial().read(rows)[:, 32:].tolist()] == [{96 / L}, {2.0}]
    packed = torch.cat([torch.arange(64), torch.arange(128)])[None]
    assert dial().read(packed).tolist() == [[1.0] * 64 + [2.0] * 128]


def test_a_hold_ends_with_the_setting_from_before() -> None:
    own = dial()
    own.turn("fixed", 3.0)
    with own.held():
        own.turn("grow")
        assert (own.policy, own.factor_for(65)) == ("grow", 2.0)
        with own.held():
            own.turn("fixed", 2.5)
            assert own.policy == "fixed"
        assert own.policy == "grow"
    assert (own.policy, own.now.factor) == ("fixed", 3.0)


def test_a_hold_is_of_one_thread() -> None:
    own = dial()
    with ThreadPoolExecutor(1) as pool, own.held():
        own.turn("fixed", 4.0)
        assert pool.submit(lambda: own.now.factor).result() is None
    assert own.now.factor is None


def test_a_setting_of_all_threads_reaches_them() -> None:
    own = dial()
    own.turn("fixed", 4.0)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: own.now.factor).result() == 4.0


class Pause(TextStreamer):
    """Lets another thread run after each token of a generation."""

    def __init__(self, between: Any) -> None:
        self.between, self.tokens = between, 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += 1
        if self.tokens > 1:  # the prompt comes first
            self.between()

    def end(self) -> None:
        pass


@pytest.mark.parametrize("policy", ["fit", "grow"])
def test_a_forward_beside_a_generate_has_its_own_t(llama: LlamaForCausalLM, policy: str) -> None:
    """The other thread's text is within L and must be the plain model's; the generation runs at t > 1."""
    prompt, short = torch.randint(1, 256, (1, 90)), torch.randint(1, 256, (1, 40))
    with torch.no_grad():
        expected = llama(short, use_cache=False).logits
    longwave.extend(llama, "yarn", max_factor=4)
    longwave.set_policy(llama, policy)
    alone = llama.generate(prompt, max_new_tokens=20, **GREEDY)
    found = []

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return llama(short).logits

    with ThreadPoolExecutor(1) as pool:
        beside = llama.generate(
            prompt, max_new_tokens=20, streamer=Pause(lambda: found.append(pool.submit(forward).result())), **GREEDY
        )
    assert torch.equal(beside, alone)
    assert len(found) == 20 and all(torch.equal(logits, expected) for logits in found)


def test_a_policy_set_beside_a_generate_waits_for_it(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4)
    prompt, waiting = torch.randint(1, 256, (1, 90)), []
    alone = llama.generate(prompt, max_new_tokens=10, **GREEDY)
    with ThreadPoolExecutor(1) as pool:

        def between() -> None:
            if not waiting:
                waiting.append(pool.submit(longwave.set_policy, llama, "fixed", 4.0))
            assert not wait(waiting, timeout=0.01).done

        beside = llama.generate(prompt, max_new_tokens=10, streamer=Pause(between), **GREEDY)
        waiting[0].result()
    assert torch.equal(beside, alone)
    assert longwave.extension(llama).dial.now.factor == 4.0


def test_a_copy_has_a_handle_and_a_dial_of_its_own(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "clex", max_factor=4)
    longwave.set_policy(llama, "fixed", 2.0)
    ids = torch.randint(1, 256, (1, 100))
    twin = copy.deepcopy(llama)
    handle = longwave.extension(twin)
    assert handle.host is twin and handle.rotaries[0].dial is handle.dial
    with torch.no_grad():
        assert torch.equal(twin(ids, use_cache=False).logits, llama(ids, use_cache=False).logits)
        longwave.set_policy(twin, "fixed", 3.0)
        assert not torch.equal(twin(ids, use_cache=False).logits, llama(ids, use_cache=False).logits)
    assert longwave.extension(llama).dial.now.factor == 2.0


def test_looking_the_extension_up_walks_no_modules(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every generated token the model was once walked from end to end."""
    longwave.extend(llama, "yarn", max_factor=4)
    walked = []
    named_modules = torch.nn.Module.named_modules

    def counted(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        for item in named_modules(self, *args, **kwargs):
            walked.append(item[0])
            yield item

    prompt = torch.randint(1, 256, (1, 90))
    llama.generate(prompt, max_new_tokens=1, **GREEDY)

    def visits(new: int) -> int:
        walked.clear()
        monkeypatch.setattr(torch.nn.Module, "named_modules", counted)
        llama.generate(prompt, max_new_tokens=new, **GREEDY)
        monkeypatch.undo()
        return len(walked)

    ours = visits(20) - visits(10)
    longwave.restore(llama)
    assert ours == visits(20) - visits(10)  # what transformers walks


@given(st.integers(2, 10**6), st.integers(2, 10**7))
def test_the_t_of_a_length_has_room_for_it(original: int, length: int) -> None:
    assert tokens_at(factor_of(length, original), original) == max(length, original)


@given(st.integers(1, 64_000), st.sampled_from([1000, 1024, 2000, 4096, 5000]))
def test_no_token_is_lost_to_rounding(thousandths: int, original: int) -> None:
    """⌊8.2 · 1000⌋ is 8,200, though the product of floats lies below."""
    factor = 1 + thousandths / 1000
    assert tokens_at(factor, original) == (1000 + thousandths) * original // 1000


def test_the_longest_sequence_at_l_1000(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=8.2, original_length=1000)
    assert longwave.extension(llama).max_length == 8200
    assert longwave.snapshot(llama, 8.2).max_length == 8200


@pytest.mark.slow
def test_compiled_code_of_one_t_is_not_run_at_another(llama: LlamaForCausalLM) -> None:
    """With gradients a compiled forward asks the dial: a hold must be seen, too."""
    longwave.extend(llama, "yarn", max_factor=4)
    ids, own = torch.randint(1, 256, (1, 80)), longwave.extension(llama).dial
    compiled = torch.compile(llama, backend="eager")
    try:
        own.set(factor=2.0)
        compiled(ids, use_cache=False)
        with own.held():
            own.set(factor=4.0)
            torch.testing.assert_close(compiled(ids, use_cache=False).logits, llama(ids, use_cache=False).logits)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, llama(ids, use_cache=False).logits)
    finally:
        torch._dynamo.reset()


def test_a_frozen_model_is_frozen_for_every_thread(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=1.0)
    ids = torch.randint(1, 256, (1, 100))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return llama(ids, use_cache=False).logits

    before = logits()
    with ThreadPoolExecutor(1) as pool, longwave.frozen(llama, 4.0):
        frozen = logits()
        assert not torch.equal(frozen, before) and torch.equal(pool.submit(logits).result(), frozen)
        assert torch.equal(copy.deepcopy(llama)(ids, use_cache=False).logits, frozen)
        with pytest.raises(ValueError, match="frozen already"), longwave.frozen(llama, 2.0):
            pass
    assert torch.equal(logits(), before)


@pytest.mark.parametrize(("log_n", "factor"), [(0.0, 4.0), (1.0, 1.0)])
def test_a_constant_of_one_is_frozen_too(llama: LlamaForCausalLM, tmp_path: Path, log_n: float, factor: float) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=log_n)
    with longwave.frozen(llama, factor):
        with pytest.raises(ValueError, match="frozen already"), longwave.frozen(llama, 2.0):
            pass
        with pytest.raises(ValueError, match=r"frozen, and its log-n is off\. Leave"):
            longwave.save(llama, tmp_path / "out")
    assert longwave.extension(llama).log_n == log_n
    longwave.save(llama, tmp_path / "out")


OUTSIDE = "factor must be between 1 and max_factor 4, got "
NO_NUMBER = "frozen takes one t for all rows, a number, got "


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (5.0, OUTSIDE + "5.0."),
        (0.5, OUTSIDE + "0.5."),
        (float("nan"), OUTSIDE + "nan."),
        (torch.tensor(5.0), OUTSIDE + "5.0."),
        ("4x", NO_NUMBER + "'4x'."),
        (None, NO_NUMBER + "None."),
        (True, NO_NUMBER + "True."),
        ([True], NO_NUMBER + "[True]."),
        ([2.0], NO_NUMBER + "[2.0]."),
        ([2.0, 3.0], NO_NUMBER + "[2.0, 3.0]."),
        (torch.tensor(True), NO_NUMBER + "tensor(True)."),
        (torch.tensor([2.0]), NO_NUMBER + "tensor([2.])."),
        (torch.tensor([]), NO_NUMBER + "tensor([])."),
    ],
)
def test_what_is_no_t_in_range_freezes_nothing(llama: LlamaForCausalLM, factor: Any, message: str) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=1.0)
    with pytest.raises(ValueError) as error, longwave.frozen(llama, factor):
        pass
    assert str(error.value) == message
    assert longwave.extension(llama).log_n == 1 and longwave.extension(llama).dial.policy == "fit"


@pytest.mark.parametrize("factor", [2, 2.0, torch.tensor(2.0)])
def test_one_number_freezes_all_rows(llama: LlamaForCausalLM, factor: Any) -> None:
    longwave.extend(llama, "yarn", max_factor=4)
    with longwave.frozen(llama, factor):
        assert longwave.extension(llama).dial.now.factor == 2.0


def test_generate_sees_a_model_frozen_or_not_frozen(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    longwave.extend(llama, "yarn", max_factor=4, log_n=1.0)
    dial, owned = longwave.extension(llama).dial, []
    settle = dial.settle
    monkeypatch.setattr(dial, "settle", lambda: (owned.append(lock_of(dial)._is_owned()), settle()))
    with longwave.frozen(llama, 4.0):
        assert owned == [True, True]  # t and the constant, under the lock that `generate` holds
    assert owned == [True] * 3
