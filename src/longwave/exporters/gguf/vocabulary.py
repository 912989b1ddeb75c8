"""What a GGUF file says of a tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType

# llama.cpp looks for these in the lower-case `general.name`, and changes the tokenizer of a file that has one. Of
# phi-3, every special token then swallows the spaces after it, but for a few.
# Source: llama.cpp, src/llama-vocab.cpp, `set attributes by model/tokenizer/architecture name`.
SPECIAL_NAMES = re.compile(r"(phi)-?(3)|(modern)-(bert)", re.IGNORECASE)
NO_MERGES = ["<none> <none>"]  # llama.cpp loads no file without merges; no text has this pair of symbols


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
