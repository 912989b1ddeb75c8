"""A method that reads a prompt otherwise than it decodes is measured as it generates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.attention import ATTENTIONS
from longwave.attention.bands import Band, NearAndFar, near, zero
from longwave.cli.main import main
from longwave.evaluation.loss import Scorer
from longwave.evaluation.passkey import PasskeySettings
from longwave.evaluation.templates import Template
from longwave.extensions.reach import fixed_length

TINY = Template(needle="key {key}.", filler="abcdefg ", question="key?", answer=" {key}")


@dataclass(frozen=True)
class Forgetful(NearAndFar):
    """Near keys alone; where a token is decoded, the first key, too."""

    name: ClassVar[str] = "forgetful"
    summary: ClassVar[str] = "sees more where it decodes"
    source: ClassVar[str] = "this test"
    prefill_differs: ClassVar[bool] = True

    def bands(self, t: float) -> tuple[Band, ...]:
        def seen(p: Tensor) -> Tensor:
            return torch.full_like(p, float(p.shape[-1] == 1) * 4)

        return near(self.w), Band(zero, seen, lambda p: torch.full_like(p, float(self.w)), zero)


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTIONS, "forgetful", Forgetful)


def greedy(model: LlamaForCausalLM, prompts: Tensor, new: int) -> Tensor:
    how = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.generate(prompts, generation_config=how)


def test_passkeys_are_those_that_generate_finds(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Answers taken from the model's own generation are right, though one forward says that they are wrong."""
    longwave.extend(llama, "forgetful", max_factor=4)
    quiz = PasskeySettings(trials=24, depths=4).quiz(tokenizer, TINY)
    asked = quiz.draw(llama, 200)
    prompts = torch.tensor([trial.ids[: -trial.answer] for trial in asked])
    own = greedy(llama, prompts, asked[0].answer)
    with fixed_length(llama, 200):
        assert not bool(Scorer(llama).hits(own, asked[0].answer).all(1).all())  # which makes the case one
    right = {trial.key: tuple(ids) for trial, ids in zip(asked[::2], own[::2].tolist(), strict=True)}
    for index, trial in enumerate(asked):
        if index % 2 == 0:
            object.__setattr__(trial, "ids", right[trial.key])
    quiz.prompts.trials = lambda *_: asked  # type: ignore[method-assign]
    from longwave.evaluation.base import Reading
    from longwave.evaluation.retrieve import retrieve

    (found,) = retrieve(llama, quiz, [200], Reading(tokens_per_batch=1000)).lengths
    assert found.decoded
    assert found.correct == tuple(index % 2 == 0 for index in range(24))


def test_the_record_says_how_answers_were_read(plain: Path, tmp_path: Path) -> None:
    command = ["passkey", plain, "--lengths", "4x", "--methods", "streaming-llm,forgetful", "--trials", "2"]
    assert main([*map(str, command), "-o", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "passkey.json").read_text())["rows"]
    assert {row["label"]: row["lengths"][0]["decoded"] for row in rows} == {"streaming-llm": False, "forgetful": True}


def test_the_record_says_that_windows_were_read_as_a_prompt(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    command = ["perplexity", plain, "--data", tmp_path / "text.txt", "--lengths", "4x", "--windows", "2"]
    command += ["--methods", "streaming-llm,forgetful", "-o", tmp_path / "out"]
    assert main([*map(str, command)]) == 0
    rows = json.loads((tmp_path / "out" / "perplexity.json").read_text())["rows"]
    found = {row["label"]: row["lengths"][0].get("as_prompt") for row in rows}
    assert found == {"streaming-llm": None, "forgetful": True}


def test_tasks_score_continuations_token_by_token(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'longwave[eval]'")
    from lm_eval.api.instance import Instance

    from longwave.evaluation.harness import LongwaveLM
    from longwave.evaluation.tasks.common import steering

    longwave.extend(llama, "forgetful", max_factor=4)
    lm = LongwaveLM(llama, tokenizer=tokenizer, batch_size=4)
    pairs = [("abcdefgh" * 12, " and so on"), ("hgfedcba" * 12, " and so on"), ("abcdefg!" * 12 + "and", " so on...")]
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)])
    for (value, _), (context, continuation) in zip(found, pairs, strict=True):
        before, after = lm.tok_encode(context), lm.tok_encode(continuation)
        ids = torch.tensor([[*before, *after]])
        with torch.no_grad(), fixed_length(llama, ids.shape[1] - 1):
            cache, seen, total = None, 0, 0.0
            for part in (ids[:, : len(before)], *ids[:, len(before) : -1].split(1, 1)):
                output = llama(part, past_key_values=cache, use_cache=True)
                cache, seen = output.past_key_values, seen + part.shape[1]
                total += float(log_softmax(output.logits[0, -1], -1)[ids[0, seen]])
            whole = log_softmax(llama(ids[:, :-1]).logits[0], -1)[len(before) - 1 :]
        assert abs(value - total) < 1e-4
        assert abs(value - float(whole.gather(1, ids[0, len(before) :, None]).sum())) > 1e-3
    assert (steering(llama) or {})["decoded"]
