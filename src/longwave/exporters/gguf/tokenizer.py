"""A transformers tokenizer as GGUF metadata, for the two kinds that llama.cpp runs as transformers does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.exporters.base import Unsupported
from longwave.exporters.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

# A file with phi-3 in its name does not load without these tokens; all others but PLAIN swallow spaces.
STRIPPED, PLAIN = {"</s>"}, {"<unk>", "<s>", "<|endoftext|>"}
END_OF_TEXT = {"gpt2": 11, "llama": 2}  # what llama.cpp takes for it where a file names none

_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _BYTES | {"use_regex": False}]


# llama.cpp's name of a pre-tokenizer, its steps in tokenizer.json, whether whole words skip the merges.
PRE_TOKENIZERS: tuple[tuple[str, list[dict[str, Any]], bool], ...] = (
    ("gpt-2", [_BYTES | {"use_regex": True}], False),
    ("smollm", [{"type": "Digits", "individual_digits": True}, _BYTES | {"use_regex": True}], False),
    ("llama-bpe", _split(_WORDS + r"\p{N}{1,3}|" + _TAIL), True),
    ("smaug-bpe", _split(_WORDS + r"\p{N}{1,3}|" + _TAIL), False),
    ("qwen2", _split(_WORDS + r"\p{N}|" + _TAIL), False),
)


def read_vocabulary(folder: Path, rows: int, eos: int | None = None) -> Vocabulary:
    """The tokenizer of a folder for a model with `rows` embeddings.

    Arguments:
        eos: the model's end of text, for a tokenizer that names none.

    Raises:
        ValueError: if llama.cpp has no tokenizer that gives the same tokens.
    """
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(folder, "has no tokenizer.json form, which GGUF export reads")
    spec = json.loads(backend.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise _refused(folder, f"is {model['type']}; GGUF export knows BPE only")
    tokens, types = _tokens(spec, rows, folder)
    framed = list(tokenizer("a")["input_ids"])
    own = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    own["eos"] = eos if own["eos"] is None else own["eos"]
    templates = _templates(tokenizer.chat_template, folder)
    swallows = _swallows_as_phi3(spec)
    common: dict[str, Any] = {
        "tokens": tokens,
        "types": types,
        "ids": {name: number for name, number in own.items() if number is not None and number < rows},
        "adds": {
            "bos": len(framed) > 1 and framed[0] == own["bos"],
            "eos": len(framed) > 1 and framed[-1] == own["eos"],
        },
        "templates": templates,
        "swallows": swallows,
    }
    greedy = [token["content"] for token in spec["added_tokens"] if token["lstrip"] or token["rstrip"]]
    notes = []
    if greedy and not swallows:
        notes.append(f"llama.cpp keeps spaces beside {greedy[0]!r}, which the model's tokenizer swallows.")
    if "eos" not in common["ids"]:
        taken = END_OF_TEXT["llama" if model.get("byte_fallback") else "gpt2"]
        notes.append(
            f"Neither the tokenizer nor config.json names an end of text: llama.cpp ends a text at token {taken} "
            f"({tokens[taken]!r})."
        )
    if templates and "default" not in dict(templates):
        notes.append(
            f"The tokenizer has no default chat template, only {', '.join(dict(templates))}: llama.cpp falls back to "
            "ChatML. Give --chat-template to llama-server."
        )
    if model.get("byte_fallback"):
        scores, space = _scores(model, tokens, types, folder), _leading_space(spec, folder)
        if space and spec["pre_tokenizer"]:  # Metaspace, unlike SentencePiece
            notes.append("llama.cpp adds a leading space to text that has one, and after special tokens, too.")
        if own["unk"] is not None:
            types[own["unk"]] = UNKNOWN
        return Vocabulary("llama", "default", scores=scores, space=space, notes=tuple(notes), **common)
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in model["merges"]]
    kind = (spec.get("normalizer") or {}).get("type")
    if kind == "NFC":
        notes.append("llama.cpp does not bring text into Unicode form NFC, as the model's tokenizer does.")
    elif kind is not None:
        raise _refused(folder, f"normalizes text ({kind}), llama.cpp does not")
    return Vocabulary("gpt2", _pre_tokenizer(spec, folder), merges=merges, notes=tuple(notes), **common)


def _templates(found: Any, folder: Path) -> tuple[tuple[str, str], ...]:
    """The chat templates by name; GGUF writes a name in letters, digits and underscores."""
    templates = found if isinstance(found, dict) else {"default": found} if isinstance(found, str) else {}
    names = [re.sub("[^A-Za-z0-9]", "_", name) for name in templates]
    if len(set(names)) < len(names):
        raise _refused(folder, f"has chat templates that GGUF cannot tell apart ({', '.join(templates)})")
    return tuple(zip(names, templates.values(), strict=True))


def _swallows_as_phi3(spec: dict[str, Any]) -> bool:
    added = {token["content"]: token for token in spec["added_tokens"]}
    if (STRIPPED | PLAIN) - added.keys():
        return False
    return all(not token["lstrip"] and token["rstrip"] == (name not in PLAIN) for name, token in added.items())


def _refused(folder: Path, what: str) -> Unsupported:
    return Unsupported(f"the tokenizer of {folder} {what}.")


def _tokens(spec: dict[str, Any], rows: int, folder: Path) -> tuple[list[str], list[int]]:
    """Every row's token and type; rows beyond the tokenizer are unused."""
    named = {number: token for token, number in spec["model"]["vocab"].items()}
    types = dict.fromkeys(named, NORMAL)
    if spec["model"].get("byte_fallback"):
        types |= {number: BYTE for number, token in named.items() if _is_byte(token)}
    for added in spec["added_tokens"]:
        named[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if max(named) >= rows:
        raise ValueError(f"the tokenizer of {folder} has token {max(named)}, the model only {rows} rows of embedding.")
    return [named.get(i, f"[PAD{i}]") for i in range(rows)], [types.get(i, UNUSED) for i in range(rows)]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _pre_tokenizer(spec: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for what tokenizer.json does before the merges."""
    found = spec.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    stripped = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, known, whole in PRE_TOKENIZERS:
        if stripped == known and bool(spec["model"].get("ignore_merges")) == whole:
            return name
    kinds = ", ".join(str(step.get("type")) for step in steps)
    names = ", ".join(name for name, *_ in PRE_TOKENIZERS)
    raise _refused(folder, f"splits text ({kinds}) in none of the ways that GGUF export knows ({names})")


def _leading_space(spec: dict[str, Any], folder: Path) -> bool:
    """Whether a text gets one; all else that may come before the merges of SentencePiece is refused."""
    normalizer, pre = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if not pre and steps in ([prepend, replace], [replace]):
        return prepend in steps
    if not steps and pre.get("type") == "Metaspace" and pre.get("replacement") == "▁" and not pre.get("split"):
        return bool(pre.get("prepend_scheme") != "never")
    raise _refused(folder, "changes spaces in a way that llama.cpp does not")


def _scores(model: dict[str, Any], tokens: list[str], types: list[int], folder: Path) -> list[float]:
    """SentencePiece's scores from the order of the merges.

    SentencePiece, and llama.cpp, rank a merge by the token that it makes. Merges that rank by their pair, or leave
    out some of a token's pairs, give other tokens.
    """
    rank: dict[str, int] = {}
    pairs = set()
    for pair in model["merges"]:
        made = "".join(pair)
        if made in rank and rank[made] != len(rank) - 1:
            raise _refused(folder, f"ranks the merges that make {made!r} apart, llama.cpp cannot")
        rank.setdefault(made, len(rank))
        pairs.add(tuple(pair))
    if sum(kind == BYTE for kind in types) != 256:
        raise _refused(folder, "lacks tokens for some bytes, and llama.cpp needs all")
    for token, kind in zip(tokens, types, strict=True):
        splits = ((token[:i], token[i:]) for i in range(1, len(token))) if kind == NORMAL else ()
        for left, right in splits:
            if (left, right) not in pairs and left in model["vocab"] and right in model["vocab"]:
                raise _refused(folder, f"does not merge {left!r} with {right!r}, llama.cpp would")
    return [-float(rank.get(token, len(rank))) for token in tokens]
