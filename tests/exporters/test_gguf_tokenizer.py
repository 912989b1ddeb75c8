"""What a GGUF file says about tokens and chat, beside the tokens themselves; llama.cpp reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_gguf import DEMO, GGUF, engine, export, make_model, make_source, read
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longwave.exporters.gguf import llamacpp
from longwave.exporters.source import Source

PHI3 = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>")
TEXT = "<|user|>  Hi<s>  there</s>\n\nyou"


def phi3_tokenizer(stripped: set[str]) -> Any:
    """The tokenizer of the demo with the special tokens of Phi-3; those in `stripped` swallow spaces after them."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_tokens([AddedToken(token, rstrip=token in stripped, special=True) for token in PHI3])
    return tokenizer


def named(name: str, folder: Path, tokenizer: Any = None) -> Source:
    return make_source(make_model("llama", vocab_size=520), folder / name, "ntk", tokenizer)


@engine
@pytest.mark.parametrize("name", ["tiny-phi3-distill", "My-Phi-3-merge", "PHI3", "modern-bert-llama"])
def test_the_name_of_a_folder_does_not_change_the_tokenizer(name: str, tmp_path: Path) -> None:
    source = named(name, tmp_path)
    [note] = GGUF().plan(source, source.snapshot(4.0)).notes
    file = next(export(source, tmp_path / "out").iterdir())
    stored = read(tmp_path / "out").fields["general.name"].contents()
    assert stored == name.replace("hi-3", "hi 3").replace("hi3", "hi 3").replace("HI3", "HI 3").replace("n-b", "n b")
    assert repr(stored) in note
    with llamacpp.served(file, 64) as address:
        found = llamacpp.ask(address, "/tokenize", content="Hello  you", add_special=True)["tokens"]
    assert found == AutoTokenizer.from_pretrained(DEMO)("Hello  you")["input_ids"]


def test_other_names_stay(tmp_path: Path) -> None:
    source = named("Philosopher-3B", tmp_path)
    assert GGUF().plan(source, source.snapshot(4.0)).notes == []
    assert read(export(source, tmp_path / "out")).fields["general.name"].contents() == "Philosopher-3B"


@engine
@pytest.mark.parametrize("name", ["phi-3-mini", "model"])
@pytest.mark.parametrize("stripped", [{"</s>", "<|user|>"}, set()], ids=["as phi-3", "nothing"])
def test_special_tokens_swallow_spaces_as_in_the_tokenizer(stripped: set[str], name: str, tmp_path: Path) -> None:
    tokenizer = phi3_tokenizer(stripped)
    source = named(name, tmp_path, tokenizer)
    assert not [note for note in GGUF().plan(source, source.snapshot(4.0)).notes if "keeps spaces" in note]
    with llamacpp.served(next(export(source, tmp_path / "out").iterdir()), 64) as address:
        found = llamacpp.ask(address, "/tokenize", content=TEXT, add_special=True, parse_special=True)["tokens"]
    assert found == tokenizer(TEXT)["input_ids"]


TEMPLATES = {
    "default": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "tool-use": "{% for m in messages %}[TOOL]{{ m['content'] }}{% endfor %}",
    "rag": "{% for m in messages %}[RAG]{{ m['content'] }}{% endfor %}",
}


def with_templates(templates: dict[str, str] | str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = templates
    return tokenizer


@engine
def test_named_chat_templates_are_in_the_file(tmp_path: Path) -> None:
    source = named("model", tmp_path, with_templates(TEMPLATES))
    folder = export(source, tmp_path / "out")
    fields = read(folder).fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATES["default"]
    assert fields["tokenizer.chat_template.tool_use"].contents() == TEMPLATES["tool-use"]
    assert fields["tokenizer.chat_template.rag"].contents() == TEMPLATES["rag"]
    assert sorted(fields["tokenizer.chat_templates"].contents()) == ["rag", "tool_use"]
    with llamacpp.served(next(folder.iterdir()), 64) as address:
        asked = {"messages": [{"role": "user", "content": "Hello"}]}
        assert llamacpp.ask(address, "/apply-template", **asked)["prompt"].endswith("Hello")


def test_chat_templates_without_a_default_are_told(tmp_path: Path) -> None:
    source = named("model", tmp_path, with_templates({name: TEMPLATES[name] for name in ("tool-use", "rag")}))
    [note] = GGUF().plan(source, source.snapshot(4.0)).notes
    assert note.startswith("The tokenizer has no default chat template, only")
    assert "tokenizer.chat_template" not in read(export(source, tmp_path / "out")).fields


def test_one_chat_template_stays_one(tmp_path: Path) -> None:
    source = named("model", tmp_path, with_templates(TEMPLATES["default"]))
    fields = read(export(source, tmp_path / "out")).fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATES["default"]
    assert "tokenizer.chat_templates" not in fields


def test_chat_templates_that_gguf_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    source = named("model", tmp_path, with_templates({"tool-use": "a", "tool_use": "b"}))
    with pytest.raises(ValueError, match="has chat templates that GGUF cannot tell apart"):
        GGUF().plan(source, source.snapshot(4.0))


@engine
def test_a_tokenizer_of_bytes_has_no_merges(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = named("model", tmp_path, tokenizer)
    with llamacpp.served(next(export(source, tmp_path / "out").iterdir()), 64) as address:
        found = llamacpp.ask(address, "/tokenize", content="naïve  <none>", add_special=True)["tokens"]
    assert found == tokenizer("naïve  <none>")["input_ids"]


@engine
def test_the_end_of_text_is_the_models_where_the_tokenizer_names_none(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """llama.cpp would take token 11 for it."""
    silent = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    model = make_model("llama", eos_token_id=[7, 9])
    source = make_source(model, tmp_path / "model", "ntk", silent)
    folder = export(source, tmp_path / "out")
    assert read(folder).fields["tokenizer.ggml.eos_token_id"].contents() == 7
    assert GGUF().plan(source, source.snapshot(4.0)).notes == []
    model = make_model("llama", eos_token_id=None)
    source = make_source(model, tmp_path / "none", "ntk", silent)
    [note] = GGUF().plan(source, source.snapshot(4.0)).notes
    assert "llama.cpp ends a text at token 11 (" in note
    file = next(export(source, tmp_path / "none-out").iterdir())
    with llamacpp.served(file, 64) as address:
        answer = llamacpp.ask(address, "/completion", prompt=[3], n_predict=4, logit_bias=[[11, 1e9]])
    assert answer["stop_type"] == "eos"
