"""A transformers tokenizer as GGUF metadata, for the two kinds that llama.cpp runs as transformers does."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longwave.checkpoints.tokenizer import load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType

# llama.cpp looks for these in the lower-case `general.name`, and changes the tokenizer of a file that has one. Of
# phi-3, every special token then swallows the spaces after it, but for PLAIN, and a file without STRIPPED and PLAIN
# does not load. Source: llama.cpp, src/llama-vocab.cpp, `set attributes by model/tokenizer/architecture name`.
SPECIAL_NAMES = re.compile(r"(phi)-?(3)|(modern)-(bert)", re.IGNORECASE)
STRIPPED, PLAIN = {"</s>"}, {"<unk>", "<s>", "<|endoftext|>"}
END_OF_TEXT = {"gpt2": 11, "llama": 2}  # what llama.cpp takes for it where a file names none
NO_MERGES = [
    "<none> <none>"
]  # llama.cpp loads no file without merges; no text has this pair, symbols start as one letter

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


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF says of a tokenizer.

    Arguments:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece BPE.
        pre: llama.cpp's name of the pre-tokenizer; of `llama`, `default`.
        tokens, types: one for each row of the embedding.
        merges: of `gpt2`. scores: of `llama`.
        ids: `bos`, `eos`, `unk` and `pad`, those that there are.
        adds: `bos` and `eos`: whether a text gets one.
        space: `llama` only: a text gets a leading space.
        templates: name and text of each chat template; the one that is not named is `default`.
        swallows: its special tokens swallow spaces as llama.cpp has it of phi-3.
        notes: what llama.cpp does differently.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    space: bool = False
    templates: tuple[tuple[str, str], ...] = ()
    swallows: bool = False
    notes: tuple[str, ...] = ()

    def add_to(self, writer: Any) -> None:
        """Write it with a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges or NO_MERGES)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space)
        for name, value in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(value)
        for name, added in self.adds.items():
            getattr(writer, f"add_add_{name}_token")(added)
        if self.templates:
            writer.add_chat_template([{"name": name, "template": template} for name, template in self.templates])

    def file_name(self, name: str) -> str:
        """`general.name` of a model, by which llama.cpp does with special tokens what the tokenizer does."""
        if self.swallows:
            return name if re.search("phi-?3", name, re.IGNORECASE) else f"{name} (phi-3)"
        return SPECIAL_NAMES.sub(lambda found: " ".join(part for part in found.groups() if part), name)


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


def _refused(folder: Path, what: str) -> ValueError:
    return ValueError(f"the tokenizer of {folder} {what}. Use --to hf.")


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
