"""The plugin for SGLang: what a request is given, rows of its tokens, and its hooks against SGLang's own classes.

LONGWAVE_SGLANG_PYTHON is a Python that can import SGLang 0.5.23.
"""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longwave.serving.marks import PROFILE
from longwave.serving.profiles import OutOfRange, Profile, Profiles
from longwave.serving.rows import Refused, append_rows, table
from longwave.serving.sglang.checks import OTHERS, refuse
from longwave.serving.sglang.choice import assign, is_chosen
from longwave.serving.sglang.tables import as_rows

L, FACTORS = 100, (1.0, 2.0, 4.0)


@dataclass
class Sampling:
    max_new_tokens: int | None = 10
    min_new_tokens: int = 0
    beam_width: int | None = None
    custom_params: dict | None = None


@dataclass
class Request:
    """The fields of a TokenizedGenerateReqInput that the plugin reads and writes."""

    input_ids: array | None
    sampling_params: Sampling = field(default_factory=Sampling)
    extra_key: str | None = None
    session_params: Any = None
    session_id: str | None = None
    input_embeds: Any = None


def profiles(**more) -> Profiles:
    base = torch.tensor([1.0, 0.1], dtype=torch.float64)
    return Profiles(L, tuple(Profile(t, int(L * t), (t, t), 1.0, tuple((base / t).tolist())) for t in FACTORS), **more)


def text(tokens: int, **more) -> Request:
    return Request(array("q", [1] * tokens), **more)


def test_the_least_t_and_a_key_of_its_own() -> None:
    keys = set()
    for tokens, number in ((50, 0), (90, 0), (91, 1), (350, 2)):
        request = text(tokens, extra_key="mine")
        assert not is_chosen(request, profiles())
        assign(request, profiles(), 400)
        assert request.sampling_params.custom_params == {PROFILE: number} and is_chosen(request, profiles())
        keys.add(request.extra_key)
    assert keys == {"mine", "rope-profile 2.0 mine", "rope-profile 4.0 mine"}


def test_no_limit_leaves_a_short_question_on_the_plain_model() -> None:
    request = text(20, sampling_params=Sampling(max_new_tokens=None))
    assign(request, profiles(), 400)
    assert request.sampling_params == Sampling(max_new_tokens=80, custom_params={PROFILE: 0})


def test_the_sender_chooses_a_larger_t_and_keeps_other_parameters() -> None:
    request = text(20, sampling_params=Sampling(custom_params={"rope_factor": 4, "other": 1}))
    assign(request, profiles(), 400)
    assert request.sampling_params.custom_params == {"rope_factor": 4, "other": 1, PROFILE: 2}
    assert request.extra_key == "rope-profile 4.0"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (text(20, sampling_params=Sampling(custom_params={"rope_factor": 3})), "rope_factor must be one of 1, 2, 4"),
        (text(20, sampling_params=Sampling(custom_params={PROFILE: 0})), "rope_profile is chosen by the server"),
        (text(400), "a text may have 400"),
        (text(20, session_id="s"), "a session would change its length factor"),
        (text(20, session_params=object()), "a session would change its length factor"),
        (text(20, sampling_params=Sampling(beam_width=2)), "no beam search"),
    ],
)
def test_what_the_sender_must_change(request_: Request, message: str) -> None:
    with pytest.raises(OutOfRange, match=message):
        assign(request_, profiles(), 400)


def test_a_request_that_nobody_chose_for_is_known() -> None:
    forged = text(150, sampling_params=Sampling(custom_params={PROFILE: 1}))
    assert not is_chosen(forged, profiles()), "without the salt of its t"
    assert not is_chosen(text(150, sampling_params=Sampling(custom_params={PROFILE: 0})), profiles()), "too long"
    assert not is_chosen(text(1, sampling_params=Sampling(custom_params={PROFILE: True})), profiles())


class Mode:
    def __init__(self, name: str) -> None:
        self.name = name

    def is_decode(self) -> bool:
        return self.name == "decode"

    def is_idle(self) -> bool:
        return self.name == "idle"


def batch(mode: str, positions: list[int], counts: list[int] | None = None) -> Any:
    return SimpleNamespace(
        forward_mode=Mode(mode), positions=torch.tensor(positions), extend_seq_lens_cpu=counts, extend_seq_lens=None
    )


def running(*numbers: int | None) -> list[Any]:
    return [
        SimpleNamespace(sampling_params=Sampling(custom_params=None if each is None else {PROFILE: each}))
        for each in numbers
    ]


def test_rows_are_positions_behind_the_first_row_of_the_request() -> None:
    starts = [0, 100, 300]
    assert as_rows(batch("decode", [7, 8, 9]), running(None, 1, 2), starts).tolist() == [7, 108, 309]
    prefill = as_rows(batch("extend", [0, 1, 5, 6, 7, 0], [2, 3, 1]), running(1, 0, 2), starts)
    assert prefill.tolist() == [100, 101, 5, 6, 7, 300]
    positions = batch("decode", [7, 8])
    assert as_rows(positions, running(0, None), starts) is positions.positions, "nothing is added within L"
    assert as_rows(batch("idle", []), [], starts).numel() == 0
    with pytest.raises(RuntimeError, match="3 tokens run, and the length factors of 2 are known"):
        as_rows(batch("decode", [7, 8, 9]), running(1, 2), starts)


def test_rows_of_a_table() -> None:
    found, own = profiles(), profiles().profiles[0]
    base = 100.0  # b^(-2i/d) = 1, 0.1
    cache = table(own, base, L + 60, torch.device("cpu"))  # SGLang makes more rows than the model has positions
    made, starts = append_rows(cache, base, found, 0, "X")
    assert starts == [0, L + 60, L + 60 + 2 * L] and made.shape == (L + 60 + 6 * L, 4)
    assert torch.equal(made[: L + 60], cache)
    for start, each in zip(starts[1:], found.profiles[1:], strict=True):
        assert torch.equal(made[start : start + each.length], table(each, base, each.length, torch.device("cpu")))
    with pytest.raises(Refused, match="rotates by other frequencies than the profiles were made for"):
        append_rows(table(own, 110.0, L, torch.device("cpu")), 110.0, found, 0, "X")
    with pytest.raises(Refused, match=r"has the shape \(160, 2\)"):
        append_rows(cache[:, :2], base, found, 0, "X")


def runner(model: dict | None = None, mla: bool = False, mrope: bool = False, **options) -> Any:
    config = SimpleNamespace(model_is_mrope=mrope, hf_text_config=SimpleNamespace(model_type="m", **(model or {})))
    plain = {option: off[0] for option, off, _ in OTHERS}
    return SimpleNamespace(server_args=SimpleNamespace(**plain | options), use_mla_backend=mla, model_config=config)


@pytest.mark.parametrize(
    ("what", "found", "message"),
    [
        (runner(speculative_algorithm="EAGLE"), profiles(), "Start without --speculative-algorithm"),
        (runner(disaggregation_mode="prefill"), profiles(), "caches that travel"),
        (runner(dcp_size=2), profiles(), "Start without --dcp-size"),
        (runner(enable_prefill_cp=True), profiles(), "Start without --enable-prefill-cp"),
        (runner(), profiles(log_n=1.0), "log-n scales queries"),
        (runner(), profiles(log_n_heads={0: (1.0,)}), "log-n scales queries"),
        (runner(mla=True), profiles(), "latent attention"),
        (runner(mrope=True), profiles(), "M-RoPE"),
        (runner({"attn_temperature_tuning": True}), profiles(), "reads positions in its attention"),
    ],
)
def test_what_cannot_be_served(what: Any, found: Profiles, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refuse(what, found)
    refuse(runner(disaggregation_mode="null", dcp_size=1, enable_mis=False), profiles())
    renamed = runner()
    del renamed.server_args.dcp_size
    with pytest.raises(ValueError, match="SGLang is another one: it has no option dcp_size"):
        refuse(renamed, profiles())


AGAINST_SGLANG = """
import sys
from longwave.serving.sglang import hooks, register
assert not [name for name in sys.modules if name.startswith("sglang.srt.m")], "nothing is imported for the hooks"
register()
assert hooks.reason_against() is None, hooks.reason_against()
from sglang.srt.plugins.hook_registry import HookRegistry
assert {hook.target for hook in hooks.HOOKS} == set(HookRegistry._patched)
hooks.reason_against.cache_clear()
import sglang.version
sglang.version.__version__ = "0.6.0"
print(hooks.reason_against())
"""


@pytest.mark.skipif(
    "LONGWAVE_SGLANG_PYTHON" not in os.environ, reason="needs LONGWAVE_SGLANG_PYTHON, a Python that has SGLang 0.5.23"
)
def test_the_hooks_go_onto_sglang() -> None:
    source = os.path.dirname(os.path.dirname(__import__("longwave").__file__))
    done = subprocess.run(
        [os.environ["LONGWAVE_SGLANG_PYTHON"], "-c", AGAINST_SGLANG],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the plugin was tested with SGLang 0.5.23, and this is 0.6.0" in done.stdout


def test_it_imports_without_sglang() -> None:
    code = "import longwave.serving.sglang.hooks, longwave.serving.sglang.tables, sys; exit('sglang' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
