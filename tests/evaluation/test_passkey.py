"""Passkey prompts and their scoring; one forward stands for greedy decoding."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

import longwave
from longwave.cli.main import main
from longwave.evaluation.passkey import PasskeySettings
from longwave.evaluation.results import curves, read
from longwave.evaluation.retrieval import LengthRetrieval
from longwave.evaluation.templates import LANDMARK, SHORT, Template
from longwave.evaluation.trials import Prompts

TINY = Template(needle="key {key}.", filler="abcdefg ", question="key?", answer=" {key}")


@pytest.mark.parametrize("template", [SHORT, LANDMARK, TINY])
def test_prompts_have_the_length_asked_for(tokenizer: PreTrainedTokenizerFast, template: Template) -> None:
    for trial in Prompts(tokenizer, template).trials(700, count=20, depths=10, seed=0):
        text = tokenizer.decode(list(trial.ids[1:]))
        assert len(trial.ids) == 700
        assert trial.ids[0] == tokenizer.bos_token_id
        assert text.startswith(template.intro)
        assert template.needle.format(key=trial.key) in text
        assert text.endswith(template.question + template.answer.format(key=trial.key))
        assert tokenizer.decode(list(trial.ids[-trial.answer :])) == f" {trial.key}"


def test_the_short_template_is_what_the_demo_model_was_trained_on() -> None:
    """Its base model was pre-trained on exactly these strings: changing them needs a new one."""
    assert (SHORT.intro, SHORT.question, SHORT.answer) == ("", "What is the pass key? The pass key is", " {key}")
    assert SHORT.needle == "The pass key is {key}. Remember it. {key} is the pass key.\n"
    assert SHORT.filler == (
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
    )


@pytest.mark.parametrize(
    ("template", "digest"), [(SHORT, "21f912ff4b57edb1"), (LANDMARK, "867342da5fa39bff")], ids=["short", "landmark"]
)
def test_prompts_with_one_key_are_those_of_earlier_versions(
    tokenizer: PreTrainedTokenizerFast, template: Template, digest: str
) -> None:
    """Records of different versions share tables. The digests were made before there were several keys."""
    trials = Prompts(tokenizer, template).trials(600, 12, 5, 0)
    values = [[trial.ids, trial.answer, trial.key, trial.depth, trial.place] for trial in trials]
    assert hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", ["short", "landmark"])
def test_several_keys_are_those_of_several_people(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    quiz = PasskeySettings(template=name, trials=20, depths=5, keys=10).quiz(tokenizer)
    one = PasskeySettings(template=name, trials=20, depths=5).quiz(tokenizer)
    asked = quiz.prompts.trials(1500, 20, 5, 0)
    assert [trial.key for trial in asked] == [trial.key for trial in one.prompts.trials(1500, 20, 5, 0)]
    for trial in asked:
        text = tokenizer.decode(list(trial.ids))
        found = re.findall(r"The pass key of (\w+) is (\d{5})\. Remember it\. \2 is the pass key of \1\.", text)
        assert len({person for person, _ in found}) == len({key for _, key in found}) == 10
        person = next(person for person, key in found if key == trial.key)
        assert text.endswith(f"What is the pass key of {person}? The pass key of {person} is {trial.key}")
        before = text[: text.index(f"The pass key of {person} is")]
        filler = len(trial.ids) - len(quiz.prompts.intro)
        assert trial.place == pytest.approx(trial.depth, abs=0.01) and (len(before) / filler < 0.9 or trial.depth > 0.5)


def test_records_with_other_numbers_of_keys_share_no_table(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(keys: int) -> Path:
        out = tmp_path / str(keys)
        command = ["passkey", plain, "--lengths", "16x", "--methods", "ntk", "--trials", 2, "--depths", 2]
        assert main([*map(str, command), "--keys", str(keys), "-o", str(out)]) == 0
        return out / "passkey.json"

    one, three = record(1), record(3)
    assert "3 keys in each prompt, 2 trials" in " ".join(capsys.readouterr().out.split())
    assert [read(path)["settings"]["keys"] for path in (one, three)] == [1, 3]
    with pytest.raises(ValueError, match=r"differ in their settings \(keys 1 and 3\)"):
        curves([read(one), read(three)])
    older = json.loads(one.read_text())
    del older["settings"]["keys"]
    one.with_name("older.json").write_text(json.dumps(older))
    assert len(curves([read(one), read(one.with_name("older.json"))])) == 1
    assert main(["passkey", str(plain), "--lengths", "16x", "--keys", "11", "-o", str(tmp_path / "b")]) == 1
    assert "keys of passkey must be between 1 and 10, got 11" in capsys.readouterr().err


def test_the_needle_lies_at_its_depth(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = Prompts(tokenizer, TINY)
    for depth in (0.0, 0.25, 1.0):
        text = tokenizer.decode(list(prompts.trial(300, "01234", depth).ids[1:]))
        before, after = text.split("key 01234.")
        assert len(before) == round(depth * (len(before) + len(after) - len("key? 01234")))


def test_trials_are_seeded_and_spread_over_the_depths(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = Prompts(tokenizer, TINY)
    trials = prompts.trials(100, count=30, depths=10, seed=3)
    assert trials == prompts.trials(100, count=30, depths=10, seed=3)
    assert trials != prompts.trials(100, count=30, depths=10, seed=4)
    depths = [trial.depth for trial in trials]
    assert {depths.count(i / 9) for i in range(10)} == {3}
    assert len({trial.key for trial in trials}) == 30


class Copies(LlamaForCausalLM):
    """Continues after the last token as the text did where that token and the one before stood together first."""

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **kwargs: object) -> CausalLMOutputWithPast:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids.tolist()):
            first: dict[tuple[int, int], int] = {}
            for i in range(1, len(ids)):
                if i < len(ids) - self.sight:
                    continue
                now = (ids[i - 1], ids[i])
                if now in first:
                    logits[row, i, ids[first[now] + 1]] = 1.0
                else:
                    first[now] = i
        return CausalLMOutputWithPast(logits=logits[:, -logits_to_keep:])


@pytest.mark.filterwarnings("ignore:Copies cannot run its head")
@pytest.mark.parametrize("sight", [100, 30])
def test_a_model_that_copies_finds_the_keys_it_sees(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sight: int
) -> None:
    model = Copies(llama.config)
    model.sight = sight
    template = Template(needle=" <{key}>\n", filler="a b ", question=" <", answer="{key}")
    found = longwave.passkey(model, tokenizer, [100], trials=200, template=template, tokens_per_batch=1000)
    keys = [trial.key for trial in Prompts(tokenizer, template).trials(100, count=200, depths=10, seed=0)]
    for key, depth, correct in zip(keys, found.lengths[0].depths, found.lengths[0].correct, strict=True):
        if len(set(key)) == 5:  # one that looks two tokens back cannot tell repeated digits apart
            assert correct == (sight == 100 or depth > 0.8)


def test_one_forward_equals_greedy_decoding(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A random model repeats itself: answers taken from its own greedy output are right, changed ones wrong."""
    longwave.extend(llama, "ntk", max_factor=4)
    from longwave.evaluation.loss import Scorer
    from longwave.extensions.reach import fixed_length

    prompts = torch.randint(1, 256, (8, 120))
    with fixed_length(llama, 125):
        greedy = prompts
        for _ in range(5):
            greedy = torch.cat([greedy, llama(greedy).logits[:, -1:].argmax(-1)], dim=1)
        changed = greedy.clone()
        changed[torch.arange(8), -1 - torch.arange(8) % 5] += 1
        assert bool(Scorer(llama).hits(greedy, 5).all(1).all())
        assert not bool(Scorer(llama).hits(changed % 256, 5).all(1).any())
    stock = llama.generate(prompts, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(stock, greedy)


def test_result(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    longwave.extend(llama, "ntk", max_factor=4)
    found = longwave.passkey(llama, tokenizer, "2x,4x", trials=20, template=TINY)
    assert [(entry.length, entry.factor) for entry in found.lengths] == [(128, 2.0), (256, 4.0)]
    entry = found.lengths[0].to_json()
    assert (entry["trials"], entry["rate"], entry["interval"][0]) == (20, 0.0, 0.0)
    assert [depth["depth"] for depth in entry["by_depth"]] == [i / 9 for i in range(10)]
    assert entry["places"] == pytest.approx(entry["depths"], abs=0.01)


def test_rates_by_depth() -> None:
    entry = LengthRetrieval(128, None, (0.0, 1.0, 0.0, 1.0), (True, False, True, True))
    assert entry.rate.value == 0.75
    assert {depth: rate.value for depth, rate in entry.by_depth().items()} == {0.0: 1.0, 1.0: 0.5}


def test_too_short_and_too_long(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"a prompt needs \d+ tokens, more than the length 64"):
        longwave.passkey(llama, tokenizer, "1x")
    longwave.extend(llama, "ntk", max_factor=4)
    with pytest.raises(ValueError, match="length 512 is beyond the maximum of 256"):
        longwave.passkey(llama, tokenizer, "8x", template=TINY)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 10"):
        longwave.passkey(llama, tokenizer, "2x", trials=0, template=TINY)
