"""Prompts stay open at their end, whatever the tokenizer appends to a text; ids without an embedding are refused."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.cli.main import main
from longwave.data.prompts import check_ids, opening, prompt_ids
from longwave.evaluation.needle import needle
from longwave.evaluation.tasks.local import run_local
from longwave.evaluation.templates import SHORT
from longwave.evaluation.trials import Prompts
from longwave.extensions.conversation import Conversation

PROMPT = "The river runs past the old mill"
BOS, EOS = 189, 0
SAMPLE = {"input": "The pass key is 12345.\n" + "Grass.\n" * 4, "target": "12345", "passkey_position": 0}


def framed(tokenizer: PreTrainedTokenizerFast, template: str = "ā $A Ā") -> PreTrainedTokenizerFast:
    """As the byte tokenizer, with `ā` in front of every text and `Ā` behind it."""
    inner = copy.deepcopy(tokenizer.backend_tokenizer)
    found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="ā", eos_token="Ā")
    assert (found.bos_token_id, found.eos_token_id) == (BOS, EOS)
    special = [(token, found.convert_tokens_to_ids(token)) for token in sorted({*template.split()} - {"$A"})]
    found.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return found


@pytest.fixture
def closing(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    found = framed(tokenizer)
    assert found("ab")["input_ids"][-1] == EOS
    return found


@pytest.fixture
def folder(plain: Path, closing: PreTrainedTokenizerFast) -> Path:
    """The random Llama, L = 64, with weights so large that its text depends on every token of a prompt."""
    closing.save_pretrained(plain)
    return plain


def continued(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: list[int], count: int) -> str:
    """What the stock `generate` makes of ids."""
    given = torch.tensor([ids])
    with torch.no_grad():
        whole = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_what_is_appended_goes_and_what_is_in_front_stays(
    tokenizer: PreTrainedTokenizerFast, closing: PreTrainedTokenizerFast
) -> None:
    plain = tokenizer(PROMPT)["input_ids"]
    assert prompt_ids(tokenizer, PROMPT) == plain
    assert prompt_ids(closing, PROMPT) == [BOS, *plain]
    assert prompt_ids(closing, PROMPT + "Ā") == [BOS, *plain, EOS]  # what the text itself ends with is text
    assert prompt_ids(framed(tokenizer, "ā ā $A Ā Ā"), PROMPT) == [BOS, BOS, *plain]
    assert prompt_ids(framed(tokenizer, "Ā $A Ā"), "") == [EOS]


def test_generate(
    folder: Path, llama: LlamaForCausalLM, closing: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", folder, "--prompt", PROMPT, "--max-new-tokens", 12, "--json") == 0
    found = json.loads(capfd.readouterr().out)
    open_ids = closing(PROMPT)["input_ids"][:-1]
    assert found["prompt_tokens"] == len(PROMPT) + 1
    assert found["text"] == continued(llama, closing, open_ids, 12)


def test_local_samples(llama: LlamaForCausalLM, closing: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "passkey.jsonl").write_text(json.dumps(SAMPLE))
    longwave.extend(llama, "ntk", max_factor=4)
    (row,) = run_local(llama, closing, tmp_path)["results"]
    prompt = SAMPLE["input"] + "What is the pass key? The pass key is "
    assert row["prompt_tokens"] == [len(prompt) + 1]
    assert row["outputs"] == [continued(llama, closing, closing(prompt)["input_ids"][:-1], 8)]


def test_prompts_from_pieces_begin_as_the_tokenizer_begins(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, closing: PreTrainedTokenizerFast
) -> None:
    """GLM, for example, puts two tokens in front and has no BOS token."""
    two = framed(tokenizer, "Ā ā $A Ā")
    assert (opening(tokenizer), opening(closing), opening(two)) == ([0], [BOS], [EOS, BOS])
    for each in (tokenizer, closing, two):
        front = opening(each)
        ids = list(Prompts(each, SHORT).trial(300, "01234", 0.5).ids)
        assert ids[: len(front) + 3] == [*front, *each("The", add_special_tokens=False)["input_ids"]]
        assert ids[-1] != EOS
        talk = Conversation(llama, each)
        hello = each("Hello\n", add_special_tokens=False)["input_ids"]
        assert talk._encode([{"role": "user", "content": "Hello"}]) == [*front, *hello]


def test_the_harness(llama: LlamaForCausalLM, closing: PreTrainedTokenizerFast) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'longwave[eval]'")
    from lm_eval.api.instance import Instance

    from longwave.evaluation.harness import LongwaveLM

    lm = LongwaveLM(longwave.extend(llama, "ntk", max_factor=4), tokenizer=closing, batch_size=2)
    context, continuation = PROMPT, " and on"
    ids = closing(context + continuation)["input_ids"][:-1]
    before = len(context) + 1
    with torch.no_grad():
        logits = llama(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    expected = sum(float(logits[place - 1, ids[place]]) for place in range(before, len(ids)))
    ((value, _),) = lm.loglikelihood([Instance("loglikelihood", {}, (context, continuation), 0)])
    assert value == pytest.approx(expected, abs=1e-4)
    asked = [(text, {"until": [], "max_gen_toks": 6}) for text in (PROMPT, "Short")]
    answers = lm.generate_until([Instance("generate_until", {}, each, i) for i, each in enumerate(asked)])
    for answer, (text, _) in zip(answers, asked, strict=True):
        assert answer == continued(llama, closing, closing(text)["input_ids"][:-1], 6)
    cut, mask = lm.tok_batch_encode([PROMPT, "ab"], left_truncate_len=10)
    assert cut[0].tolist() == closing(PROMPT)["input_ids"][-11:-1]
    assert mask.sum(1).tolist() == [10, 3]
    written, _ = lm.tok_batch_encode(["āab"])  # BOS in the text, as chat templates write it: nothing is added
    assert written.tolist() == [[BOS, *closing("ab", add_special_tokens=False)["input_ids"]]]
    assert lm.tok_encode("ab", add_special_tokens=False) == closing("ab", add_special_tokens=False)["input_ids"]
    assert lm.tok_encode(PROMPT, left_truncate_len=4) == closing(PROMPT)["input_ids"][-5:-1]


# Ids without an embedding row

NEW = "<new>"


@pytest.fixture
def grown(plain: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With a token that the model in the folder `plain` has no row for: its 256 rows end at id 255."""
    found = copy.deepcopy(tokenizer)
    assert found.add_tokens([NEW]) == 1
    found.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    found.save_pretrained(plain)
    return found


LINE = "the tokenizer's ids reach 256 but the model knows 256: there is no embedding row for 256 (<new>). Use the "


@pytest.mark.parametrize("command", ["perplexity", "needle", "generate", "tasks", "chat", "evaluate", "train"])
def test_every_command_names_ids_without_a_row(
    plain: Path, grown: PreTrainedTokenizerFast, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, command: str,
) -> None:  # fmt: skip
    (tmp_path / "book.txt").write_text("".join(f"Line {i} of the {NEW} book. " for i in range(60)))
    (tmp_path / "passkey.jsonl").write_text(json.dumps({**SAMPLE, "input": f"The {NEW} key."}))
    (tmp_path / "suite.yaml").write_text("- perplexity: {windows: 2, targets: 8}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hello {NEW}.\n"))
    data, out = ("--data", tmp_path / "book.txt"), ("-o", tmp_path / "out")
    arguments: dict[str, tuple[object, ...]] = {
        "perplexity": (*data, *out, "--lengths", "1x", "--targets", 8),
        "needle": (*data, *out, "--lengths", "4x", "--trials", 4, "--depths", 2),
        "generate": ("--prompt", f"A {NEW} day"),
        "tasks": ("--samples", tmp_path / "passkey.jsonl", *out),
        "chat": (),
        "evaluate": (*data, *out, "--lengths", "1x", "--suite", tmp_path / "suite.yaml"),
        "train": (*data, *out, "--train-length", 48, "--max-factor", 2, "--steps", 1),
    }
    assert run(command, plain, *arguments[command]) == 1  # a chat from a pipe goes on, and says so at its end
    error = capfd.readouterr().err
    assert LINE in error or (command == "perplexity" and LINE.replace(" (<new>)", "") in error)
    assert "resize_token_embeddings(257)" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").rglob("*.json")]


def test_the_harness_names_ids_without_a_row(llama: LlamaForCausalLM, grown: PreTrainedTokenizerFast) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'longwave[eval]'")
    from longwave.evaluation.harness import LongwaveLM

    lm = LongwaveLM(llama, tokenizer=grown)
    for call in (lambda: lm.tok_encode(NEW), lambda: lm.tok_batch_encode([NEW, "ab"])):
        with pytest.raises(ValueError, match=r"no embedding row for 256 \(<new>\)"):
            call()


def test_a_token_that_no_text_contains_is_no_fault(llama: LlamaForCausalLM, grown: PreTrainedTokenizerFast) -> None:
    """Gemma 3 1B comes with one."""
    longwave.extend(llama, "ntk", max_factor=4)
    assert longwave.passkey(llama, grown, "4x", trials=2).lengths[0].length == 256
    with pytest.raises(ValueError, match=r"no embedding row for 256 \(<new>\)"):
        needle(llama, grown, f"A {NEW} day has come. " * 30, [200], trials=2, depths=2)


def test_many_ids_without_a_row(llama: LlamaForCausalLM) -> None:
    llama.resize_token_embeddings(40)
    with pytest.raises(ValueError, match=r"reach 60 but the model knows 40: .* row for 40, 41, 42 and 18 more\. Use"):
        check_ids(torch.arange(61).view(1, -1), llama)
    check_ids([0, 39], llama)
    check_ids([], llama)
