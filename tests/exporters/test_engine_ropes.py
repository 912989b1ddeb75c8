"""The engines' own rope classes turn queries and keys as longwave does, and only with the factors."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch

from longwave.extensions.policy import snapshot

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "runs" / "engine_ropes.py"))
FACTOR, FOLDERS, HEAD_DIM, HEADS, LENGTH = (SCRIPT[n] for n in ("FACTOR", "FOLDERS", "HEAD_DIM", "HEADS", "LENGTH"))
build, difference, engine_rope, exported, made = (
    SCRIPT[n] for n in ("build", "difference", "engine_rope", "exported", "made")
)
SERVED = int(FACTOR * LENGTH)


@pytest.fixture(params=FOLDERS)
def engine(request) -> str:
    return request.param


@pytest.fixture
def package(engine) -> ModuleType:
    variable = f"LONGWAVE_{engine.upper()}"
    if variable not in os.environ:
        pytest.skip(f"needs the unpacked wheel of {engine} (set {variable}; runs/engine_ropes.py says how)")
    return engine_rope(engine, Path(os.environ[variable]), SERVED)


@pytest.fixture
def yarn(tmp_path):
    return made("whole head", "yarn", tmp_path / "saved")


@pytest.mark.parametrize("method", SCRIPT["METHODS"])
@pytest.mark.parametrize("case", SCRIPT["CASES"])
def test_queries_and_keys(engine, package, case, method, tmp_path):
    model, source = made(case, method, tmp_path / "saved")
    ones = [1.0] * snapshot(model, FACTOR).factors.numel()
    found = difference(model, build(engine, package, exported(source), SERVED))
    control = exported(source, short_factor=ones, long_factor=ones)
    without = difference(model, build(engine, package, control, SERVED))
    print(f"{engine}, {method}, {case}: {found}, factors 1: {without}")
    assert max(found) == 0
    assert min(without) > 1


def test_attention_scaling_comes_from_the_mscale_keys_alone(engine, package, yarn):
    model, source = yarn
    ignored = exported(source, attention_factor=2.0)
    assert max(difference(model, build(engine, package, ignored, SERVED))) == 0
    other = exported(source, short_mscale=1.0, long_mscale=1.0)
    assert max(difference(model, build(engine, package, other, SERVED))) > 0.1
    # Without the keys it is sqrt(1 + ln(max / original) / ln(original)): 1 at the canonical lengths, but not at others.
    bare = exported(source)
    del bare["short_mscale"], bare["long_mscale"]
    assert max(difference(model, build(engine, package, bare, SERVED))) > 0.1


def test_interleaved_layouts_are_refused(engine, package, yarn):
    _, source = yarn
    with pytest.raises(ValueError, match="only supports neox_style"):
        build(engine, package, exported(source), SERVED, neox=False)


def test_beyond_the_length_a_token_turns_as_the_first(engine, package, yarn):
    """Why original_max_position_embeddings must be all of t·L: the table of the long factors follows at once."""
    _, source = yarn
    rotate = build(engine, package, exported(source), SERVED)
    q = torch.randn(1, HEADS, HEAD_DIM)
    beyond, first = (rotate(torch.tensor([position]), q, q)[0] for position in (SERVED, 0))
    assert torch.equal(beyond, first)


def test_the_switch_to_long_factors_is_off_by_one_in_sglang(engine, package, yarn):
    """With original = L < max: SGLang's last position of the short table is one that it does not have."""
    if engine != "sglang":
        pytest.skip("vLLM chooses by the length that it serves, once")
    _, source = yarn
    rotate = build(engine, package, exported(source, original_max_position_embeddings=LENGTH), SERVED)
    q = torch.randn(1, HEADS, HEAD_DIM)
    at, first, after = (rotate(torch.tensor([position]), q, q)[0] for position in (LENGTH, 0, LENGTH + 1))
    assert torch.equal(at, first) and not torch.equal(after, first)
