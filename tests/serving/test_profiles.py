"""Profiles: what a folder says of itself, and which t a request gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import longwave
from longwave.cli.main import main
from longwave.serving.profiles import KEY, OutOfRange, Profile, Profiles, check_factors

L = 256
FACTORS = (1.0, 2.0, 4.0, 8.0)


def profiles(factors: tuple[float, ...] = FACTORS, **more) -> Profiles:
    return Profiles(
        L, tuple(Profile(t, int(t * L), (t, t + 1), 1.0 + t / 10, (1.0 / t, 0.5 / t)) for t in factors), **more
    )


@given(st.integers(1, 3000), st.one_of(st.none(), st.integers(1, 3000)), st.one_of(st.none(), st.integers(L, 8 * L)))
def test_the_least_t_that_has_room(prompt: int, new: int | None, limit: int | None) -> None:
    found, most = profiles(), min(8 * L, limit or 8 * L)
    if prompt >= most:
        with pytest.raises(OutOfRange, match=f"the prompt has {prompt} tokens, and a text may have {most}"):
            found.choose(prompt, new, limit=limit)
        return
    choice = found.choose(prompt, new, limit=limit)
    needed = min(prompt + (found.reserve if new is None else new), most)
    assert choice.profile == sum(int(t * L) < needed for t in FACTORS), "the first one that is long enough"
    assert 1 <= choice.new_tokens <= min(int(FACTORS[choice.profile] * L), most) - prompt
    if new is not None and prompt + new <= most:
        assert choice.new_tokens == new, "an answer keeps the limit that was asked for"


def test_a_short_question_without_a_limit_stays_on_the_plain_model() -> None:
    choice = profiles().choose(5, None)
    assert (choice.profile, choice.new_tokens) == (0, L - 5)
    assert profiles().choose(L - L // 4, None).profile == 0 and profiles().choose(L - L // 4 + 1, None).profile == 1


def test_the_sender_may_choose_t() -> None:
    assert profiles().choose(10, 20, wanted=4).profile == 2
    assert profiles().choose(10, None, wanted=8.0).new_tokens == 8 * L - 10
    for wanted in (3, 0, "4", True, float("nan")):
        with pytest.raises(OutOfRange, match=r"rope_factor must be one of 1, 2, 4, 8, got"):
            profiles().choose(10, 20, wanted=wanted)  # type: ignore[arg-type]
    assert profiles().choose(250, None, wanted=1.0).new_tokens == 6, "without a limit the room that is there"
    with pytest.raises(OutOfRange, match=r"rope_factor 1 serves 256 tokens, and this text may have 301. Choose 2"):
        profiles().choose(300, None, wanted=1)
    with pytest.raises(OutOfRange, match=r"rope_factor 1 serves 256 tokens, and this text may have 310. Choose 2"):
        profiles().choose(300, 10, wanted=1)


@pytest.mark.parametrize("more", [{"log_n": 0.5}, {"log_n_heads": {0: (0.1, 0.2), 3: (0.0, 1.0)}}])
def test_a_config_keeps_them(more: dict) -> None:
    written = json.loads(json.dumps({KEY: profiles(**more).as_dict()}))
    assert Profiles.of(written) == profiles(**more)
    assert profiles(**more).scales_queries and not profiles().scales_queries
    assert Profiles.of({"model_type": "llama"}) is None


def test_damaged_ones_are_refused() -> None:
    whole = profiles().as_dict()
    for damage in ({"format": 3}, {"profiles": [{}]}, {"profiles": []}, {"original_length": None}):
        with pytest.raises(ValueError, match=r"rope_profiles of config.json|profiles must begin with 1"):
            Profiles.of({KEY: whole | damage})


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ((), "must begin with 1"), ((2.0, 4.0), "must begin with 1, the plain model, got 2, 4"),
        ((1.0, 4.0, 2.0), "that rise, got 1, 4, 2"), ((1.0, 1.0), "that rise"), ((1.0, float("inf")), "that rise"),
    ],
)  # fmt: skip
def test_factors_that_cannot_be(factors: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_factors(factors)


DEMO = Path(longwave.__file__).parent / "demo" / "model"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profiles", "2,4"], "profiles must begin with 1"),
        (["--profiles", "1,4,2"], "profiles must be length factors that rise"),
        (["--profiles", "1,x"], "profiles must be length factors such as 1,2,4,8, got '1,x'"),
        (["--profiles", "1,2", "--factor", "2"], "profiles go without factor"),
        (["--profiles", "1,2", "--verify"], "profiles go without verify"),
        (["--profiles", "1,2", "--target", "gguf"], "profiles are read by vLLM alone"),
        (["--profiles", "1,2", "--method", "infllm"], "infllm is more than bands"),
    ],
)
def test_profiles_that_cannot_be_exported(options, message, tmp_path, capsys) -> None:
    method = [] if "--method" in options else ["--method", "yarn"]
    assert main(["export", str(DEMO), *method, *options, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "out").exists()
