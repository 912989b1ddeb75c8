"""Key tokens: those that an evaluator model finds easier with the whole context than with a short one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longwave.checkpoints.folder import ModelFolder, resolve
from longwave.checkpoints.load import load
from longwave.checkpoints.outline import outline
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.errors import install
from longwave.evaluation.cells import fingerprint
from longwave.evaluation.choice import Choice
from longwave.extensions.handle import find_extension
from longwave.extensions.reach import reach_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(eq=False)
class Reader:
    """An evaluator without its weights.

    Arguments:
        path: folder, or name on a hub.
        tokenizer: the evaluator's tokenizer.
        digest: of its files, see `digest_of`.
        limit: the longest text that it reads, in its tokens; None if that is not known.
    """

    path: str
    tokenizer: PreTrainedTokenizerBase
    digest: str
    limit: int | None

    def encode(self, text: str) -> dict[str, Tensor]:
        """Token ids and offsets of a text; a `ValueError` for a text that is longer than the limit."""
        encoded = self.tokenizer(text, return_tensors="pt", return_offsets_mapping=True, verbose=False)
        count = encoded["input_ids"].shape[1]
        if self.limit is not None and count > self.limit:
            raise ValueError(
                f"the evaluator {self.path} reads {self.limit} tokens, and a text has {count} of its tokens. "
                "Name an evaluator with a longer context, or give shorter lengths."
            )
        return {name: encoded[name] for name in ("input_ids", "offset_mapping")}


@dataclass(eq=False)
class Evaluator(Reader):
    """A long-context model that says which tokens of a text are key. It says so once for each text.

    Arguments:
        model: with its weights.
    """

    model: PreTrainedModel
    _known: dict[tuple[str, Choice], list[list[int]]] = field(default_factory=dict, init=False, repr=False)

    def key_intervals(self, text: str, choice: Choice) -> list[list[int]]:
        """The start and end, in characters, of each run of key tokens."""
        known = text, choice
        if known not in self._known:
            self._known[known] = self._find(text, choice)
        return self._known[known]

    def _find(self, text: str, choice: Choice) -> list[list[int]]:
        from longppl.longppl import find_key_token

        def encode(text: str, **_: Any) -> dict[str, Tensor]:
            encoded = self.encode(text)
            last = (encoded["input_ids"].shape[1] - choice.trunc_len) % choice.sliding_window
            # The library fails on a last step of one token: that token is left out.
            return {name: ids[:, :-1] for name, ids in encoded.items()} if last == 1 else encoded

        with torch.inference_mode():
            found = find_key_token(
                text, self.model, encode, choice.trunc_len, choice.sliding_window, alpha=choice.alpha, beta=choice.beta
            )
        return found.tolist()


def _limit(model: PreTrainedModel) -> int | None:
    if find_extension(model) is not None:
        return reach_of(model)
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@lru_cache(maxsize=4)
def folder_of(path: str) -> ModelFolder:
    """The evaluator's files, found once: a name on a hub means one commit from then on."""
    return resolve(path)


@lru_cache(maxsize=4)
def reader_of(path: str) -> Reader:
    """The evaluator without its weights; a `ValueError` if there is none, or if its tokenizer gives no offsets."""
    digest = digest_of(path)
    tokenizer = load_tokenizer(folder_of(path))
    check_fast(tokenizer)
    model = outline(folder_of(path))
    return Reader(path, tokenizer, digest, None if model is None else _limit(model))


@lru_cache(maxsize=1)
def evaluator_of(path: str, dtype: torch.dtype, device: torch.device) -> Evaluator:
    """The evaluator, read once and kept; a `ValueError` as in `reader_of`."""
    reader = reader_of(path)
    model = load(folder_of(path), dtype=dtype).to(device).eval()  # type: ignore[arg-type]
    model.config.use_cache = False  # the library does not ask for none
    return Evaluator(path, reader.tokenizer, reader.digest, _limit(model), model)


@lru_cache(maxsize=4)  # weights are read whole: gigabytes
def digest_of(path: str) -> str:
    """The first 20 hex digits of the SHA-256 of an evaluator's files: the same for a copy in another folder."""
    if not path:
        raise ValueError(
            "LongPPL needs an evaluator, a model with a long context. Name it in the suite: "
            "`- longppl: {evaluator: PATH}`, or with --evaluator PATH."
        )
    return hashlib.sha256(json.dumps(fingerprint(folder_of(path)), sort_keys=True).encode()).hexdigest()[:20]


def package() -> str:
    """Name and version of the library that finds key tokens; a `ValueError` if it is not installed."""
    try:
        from longppl.longppl import find_key_token  # noqa: F401
    except ImportError as error:
        raise ValueError(f"key tokens are found by longppl ({error}). Run: {install('eval')}.") from None
    return f"longppl {version('longppl')}"


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise ValueError(f"LongPPL needs offsets of tokens, which {name} does not give. Use a fast tokenizer.")
