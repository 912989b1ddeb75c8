"""`longwave generate`, `longwave chat` and the conversation behind it, on a small random model."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import longwave
from longwave.cli.main import main
from longwave.extensions.conversation import Conversation

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_generate_is_what_the_model_generates(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prompt = "A text of more than sixty-four bytes, so that it is longer than the window of the model."
    (tmp_path / "prompt.txt").write_text(prompt)
    assert run("generate", trained, "--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", 30, "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["prompt_tokens"], found["factor"]) == (len(prompt), (len(prompt) + 30) / 64)
    model, tokenizer = longwave.load(trained), PreTrainedTokenizerFast.from_pretrained(trained)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert found["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert found["new_tokens"] == len(expected)
    # Streamed, in chunks: the same text
    for extra in ([], ["--stream"], ["--prefill-chunk", 16]):
        assert run("generate", trained, "--prompt", prompt, "--max-new-tokens", 30, *extra) == 0
        printed = capfd.readouterr()
        assert printed.out == found["text"] + "\n"
        assert printed.err.startswith(f"[{len(prompt)} + {len(expected)} tokens · t 1.844 · ")
        assert printed.err.count("\n") == 1


def test_training_free_from_stdin(
    plain: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 40))
    options = ["--method", "yarn", "--to", 512, "--max-new-tokens", 20, "--policy", "grow", "--json"]
    assert run("generate", plain, "--prompt-file", "-", *options) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["prompt_tokens"], found["policy"], found["factor"]) == (200, "grow", 4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the prompt as --prompt TEXT or as --prompt-file"),
        (["--prompt", "a", "--prompt-file", "b"], "one of them"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt-file", "/absent"], "prompt file /absent does not exist"),
        (["--prompt", "a", "--max-new-tokens", 0], "max new tokens must be at least 1, got 0"),
        (["--prompt", "a", "--max-new-tokens", 90], "1 tokens of prompt and 90 new ones are more than 64"),
        (
            ["--prompt", "a" * 70],
            "the prompt has 70 tokens and the model reads 64, the answer's included",
        ),
        (["--prompt", "a", "--method", "yran"], "Did you mean 'yarn'"),
        (["--prompt", "a", "--method", "clex"], "clex needs trained weights"),
        (["--prompt", "a", "--to", 128], "--to says how far a --method is to reach"),
        (["--prompt", "a", "--method", "ntk", "--to", 10], "--to 10 is less than the 64 tokens"),
        (["--prompt", "a", "--temperature", -1], "temperature must be >= 0"),
    ],
)
def test_bad_input_is_one_line(
    plain: Path, capfd: pytest.CaptureFixture[str], arguments: list[object], message: str
) -> None:
    assert run("generate", plain, *arguments) == 1
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_keeps_its_method(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", trained, "--prompt", "a", "--method", "ntk") == 1
    assert "has its own extension" in capfd.readouterr().err


def test_chat(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "talk.json"
    lines = ["Hello there, what is a rotary embedding?", "/unknown", "And why does it turn?", f"/save {saved}",
             f"/save {saved}", "/save /absent/talk.json",
             "/reset", "Again.", "word " * 60, "/exit", "never read"]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert run("chat", trained, "--max-new-tokens", 20, "--temperature", 0) == 1  # piped, and not every turn worked
    printed = capfd.readouterr()
    status = [line for line in printed.err.splitlines() if line.startswith("[") and "tokens/s" in line]
    assert [line.split(" of ")[1].split(" ")[0] for line in status] == ["256"] * 3
    assert all(" new tokens, " in line for line in status)
    assert ["t 1 " in line for line in status] == [True, False, True]
    assert "unknown command /unknown" in printed.err
    assert f"error: {saved} exists" in printed.err
    assert (
        "error: cannot write to /absent/talk.json: No such file or directory. Choose another output.\n" in printed.err
    )
    assert "the conversation would have" in printed.err
    assert [message["role"] for message in json.loads(saved.read_text())] == ["user", "assistant"] * 2


def test_a_chat_goes_on_after_a_turn_that_did_not_fit_the_memory(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failing = Conversation._answer, [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]

    def answer(self: Conversation, *rest: Any) -> str:
        if failing:
            raise failing.pop()
        return real(self, *rest)

    monkeypatch.setattr(Conversation, "_answer", answer)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\nHello again.\n"))
    assert run("chat", trained, "--max-new-tokens", 4) == 1  # piped, and not every turn worked
    error = capfd.readouterr().err
    assert "error: the memory does not suffice for this turn." in error
    assert error.count("tokens/s") == 1 and "Traceback" not in error


def test_a_chat_without_a_failure_ends_well(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n\n/help\n/reset\n"))
    assert run("chat", trained, "--max-new-tokens", 4) == 0


def test_at_a_terminal_a_failed_turn_is_told_and_that_is_all(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("word " * 60 + "\n/exit\n"))
    assert run("chat", trained, "--max-new-tokens", 4) == 0
    assert "the conversation would have" in capfd.readouterr().err


def test_a_template_that_refuses_is_one_line(
    trained: Path,
    tokenizer: PreTrainedTokenizerFast,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ raise_exception('System role not supported') }}"
    changed.save_pretrained(trained)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello."))
    assert run("chat", trained) == 1
    error = capfd.readouterr().err
    assert "error: the tokenizer's chat template refuses these messages: System role not supported\n" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_turns_on_a_cache_equal_turns_without(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    """Each answer is what a fresh call gives for the whole text so far."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="Ā", bos_token="Ā")
    tokenizer.chat_template = template
    longwave.extend(llama, "clex", max_factor=8)
    for parameter in llama.parameters():
        parameter.data *= 2
    longwave.set_policy(llama, "grow")
    talk = Conversation(llama, tokenizer, system="Be brief.", do_sample=False, pad_token_id=0)
    for turn in range(5):
        ids = torch.tensor([talk._encode([*talk.messages, {"role": "user", "content": f"Question {turn}?"}])])
        fresh = llama.generate(ids, max_new_tokens=25, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        answer = talk.say(f"Question {turn}?", max_new_tokens=25)
        assert answer == tokenizer.decode(fresh, skip_special_tokens=True)
    assert talk.length > 2 * 64
    assert talk.factor >= 4
    talk.reset()
    assert (talk.length, talk.factor) == (0, 1.0)
    assert [message["role"] for message in talk.messages] == ["system"]


def test_an_interrupted_answer_leaves_the_conversation_as_it_was(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    class Stop:
        def put(self, value: torch.Tensor) -> None:
            if value.numel() == 1:
                raise KeyboardInterrupt

        def end(self) -> None: ...

    longwave.extend(llama, "ntk", max_factor=8)
    talk, other = (Conversation(llama, tokenizer, do_sample=False, pad_token_id=0) for _ in range(2))
    for conversation in (talk, other):
        conversation.say("First.", max_new_tokens=10)
    with pytest.raises(KeyboardInterrupt):
        talk.say("Second.", max_new_tokens=10, streamer=Stop())
    assert talk.messages == other.messages
    assert talk.say("Third.", max_new_tokens=10) == other.say("Third.", max_new_tokens=10)
