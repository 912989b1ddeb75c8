"""The plugin's seams: hooks that have changed, modules that are imported later, what a request is given."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from longwave.serving.hook import Hook
from longwave.serving.later import when_imported
from longwave.serving.marks import PROFILE
from longwave.serving.profiles import OutOfRange, Profile, Profiles
from longwave.serving.vllm.choice import assign


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that is imported by name, and forgotten afterwards."""
    (tmp_path / "toy_engine.py").write_text(
        "class Core:\n    def add(self, request, at=0):\n        return [request]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_engine"
    sys.modules.pop("toy_engine", None)


def doubled(found):
    def add(self, request, at=0):
        return found(self, request, at) * 2

    return add


def test_a_hook_waits_for_its_module(engine: str) -> None:
    hook = Hook(engine, "Core.add", ("self", "request"), doubled)
    when_imported(engine, hook.install)
    assert engine not in sys.modules, "nothing is imported for the hook"
    import toy_engine

    assert toy_engine.Core().add(1) == [1, 1]
    when_imported(engine, hook.install)
    assert toy_engine.Core().add(1) == [1, 1], "it is put on once"


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "Core.add",
            ("self", "request", "when"),
            r"toy_engine.Core.add takes self, request, at, and not self, request, when",
        ),
        ("Core.take", ("self",), "toy_engine.Core.take is not there"),
        ("Other.add", ("self",), "toy_engine.Other.add is not there"),
    ],
)
def test_a_changed_function_is_named_and_left_alone(engine: str, name: str, parameters, message: str) -> None:
    hook = Hook(engine, name, parameters, doubled)
    assert hook.difference() == message
    hook.install()
    import toy_engine

    assert toy_engine.Core().add(1) == [1]
    assert Hook("toy_engine_that_is_not", "f", (), doubled).difference() == "toy_engine_that_is_not.f is not there"


@dataclass
class Sampling:
    max_tokens: int | None = 10
    min_tokens: int = 0
    extra_args: dict | None = None


@dataclass
class Request:
    """The fields of an EngineCoreRequest that the plugin reads and writes."""

    prompt_token_ids: list[int] | None
    sampling_params: Sampling | None = field(default_factory=Sampling)
    cache_salt: str | None = None
    lora_request: Any = None
    resumable: bool = False
    prompt_embeds: Any = None


def profiles() -> Profiles:
    return Profiles(100, tuple(Profile(t, int(100 * t), (t,), 1.0, (1 / t,)) for t in (1.0, 2.0, 4.0)))


def test_a_request_within_l_keeps_its_salt() -> None:
    request = Request([1] * 50, cache_salt="mine")
    assign(request, profiles(), limit=400, folder="m")
    assert request.cache_salt == "mine" and request.sampling_params.extra_args == {PROFILE: 0}
    assert assign(request, profiles(), limit=400, folder="m", front=False) is None, "the engine changes nothing"


def test_keys_of_another_t_are_never_found() -> None:
    salts = set()
    for tokens in (50, 150, 350):
        for own in (None, "mine", "yours", "rope-profile 2.0", "rope-profile 2.0 mine", "rope-profile 1.0 mine"):
            request = Request([1] * tokens, cache_salt=own)
            assign(request, profiles(), limit=400, folder="m")
            salts.add(request.cache_salt)
    assert len(salts) == 18


def test_no_limit_is_a_limit_that_fills_the_engine() -> None:
    request = Request([1] * 20, Sampling(max_tokens=380))  # as vLLM fills it in
    assign(request, profiles(), limit=400, folder="m")
    assert request.sampling_params.max_tokens == 80 and request.sampling_params.extra_args[PROFILE] == 0


def test_an_explicit_limit_is_kept_however_large() -> None:
    for limit in (379, 381, 5000):
        request = Request([1] * 20, Sampling(max_tokens=limit))
        assign(request, profiles(), limit=400, folder="m")
        assert request.sampling_params.extra_args[PROFILE] == 2 and request.sampling_params.max_tokens == min(
            limit, 380
        )


def test_an_answer_that_must_be_long_gets_the_room() -> None:
    request = Request([1] * 20, Sampling(max_tokens=380, min_tokens=150))
    assign(request, profiles(), limit=400, folder="m")
    assert request.sampling_params.max_tokens == 180 and request.sampling_params.extra_args[PROFILE] == 1


def test_what_the_sender_must_change() -> None:
    for number in (0, 2, 9, "1"):
        sent = Request([1] * 350, Sampling(extra_args={PROFILE: number}))
        with pytest.raises(OutOfRange, match=r"rope_profile is chosen by the server. Send rope_factor."):
            assign(sent, profiles(), limit=400, folder="m")
    forged = Request([1] * 350, Sampling(extra_args={PROFILE: 2}), cache_salt="mine")
    with pytest.raises(OutOfRange, match="chosen by the server"):
        assign(forged, profiles(), limit=400, folder="m", front=False)
    for salt, tokens in (("rope-profile 2.05", 150), ("rope-profile 2.0", 350), (None, 150)):
        forged = Request([1] * tokens, Sampling(extra_args={PROFILE: 1}), cache_salt=salt)
        with pytest.raises(OutOfRange, match="chosen by the server"):
            assign(forged, profiles(), limit=400, folder="m", front=False)
    forged = Request([1] * 350, Sampling(extra_args={PROFILE: 0}))
    with pytest.raises(OutOfRange, match="chosen by the server"):
        assign(forged, profiles(), limit=400, folder="m", front=False)
    with pytest.raises(OutOfRange, match="generates text"):
        assign(Request([1], None), profiles(), limit=400, folder="m")
    with pytest.raises(OutOfRange, match="resumed"):
        assign(Request([1], resumable=True), profiles(), limit=400, folder="m")
    with pytest.raises(OutOfRange, match="rope_factor must be one of 1, 2, 4, got 64"):
        assign(Request([1], Sampling(extra_args={"rope_factor": 64})), profiles(), limit=400, folder="m")
