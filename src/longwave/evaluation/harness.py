"""`--model longwave` for the Language Model Evaluation Harness (lm-eval).

lm-eval looks for models in its own package only. `python -m longwave.evaluation.harness` is its command line
with this one registered; in Python, importing this module registers it.
"""

from __future__ import annotations

import difflib
import inspect
from collections import defaultdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.models.utils_hf import get_dtype
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from longwave.checkpoints.folder import Kind, resolve, tokenizer_folder
from longwave.checkpoints.load import load
from longwave.data.prompts import check_ids, closing_length
from longwave.evaluation.decoded import decoded_logits, must_decode
from longwave.evaluation.tasks.truncation import truncate_middle
from longwave.extensions.handle import find_extension
from longwave.extensions.on_the_spot import extend_plain
from longwave.extensions.policy import set_policy
from longwave.extensions.reach import max_length_of

TRUNCATIONS = ("left", "middle")
# Other ways to get a model than longwave.load: they would be ignored.
NOT_OURS = (
    "backend", "trust_remote_code", "parallelize", "max_memory_per_gpu", "max_cpu_memory", "offload_folder", "tp_plan",
    "peft", "delta", "autogptq", "gptqmodel", "gguf_file", "subfolder",
)  # fmt: skip


@register_model("longwave")
class LongwaveLM(HFLM):
    """Any model that `longwave.load` reads, each request at the t of its own length.

    A log-likelihood request of n tokens is read at t(n), whatever else is scored with it: `HFLM` pads a batch on
    the right without a mask, which would give all rows the t of the longest, so that here only requests of equal
    length share a forward. A generation runs under the policy `fit`: at t of its own prompt and the tokens that
    may follow. `factor` puts one t in place of both.

    An attention method that reads a prompt otherwise than it decodes is measured as it generates: the context in one
    forward, the continuation token by token. Whole texts (rolling requests) are read in one forward.

    Answers of a multiple-choice question that differ in length are read at different t where the schedule is
    `@continuous`. A `factor`, or `@ceiling`, puts them on one.

    Arguments:
        pretrained: a folder, a name on the Hugging Face hub, or a model (a plain one is extended in place by
            `method`, and stays it).
        method: `METHOD[@SCHEDULE]` for a plain model.
        to: longest text in tokens, for `method`; default 8 times the trained length.
        factor: t of every request. Texts beyond factor·L are then out of what it was made for: set `max_length`.
        truncate: what prompts of generation lose that are too long: `left`, their start, as in lm-eval, or `middle`,
            as LongBench does. Log-likelihood requests always lose their start.
        max_length: longest text in tokens, default the extended model's maximum.
        dtype, device, revision, attn_implementation: for loading; dtype `auto` is as stored.
        arguments: further ones of `HFLM`: `batch_size`, `add_bos_token`, `prefix_token_id`, ...

    Raises:
        ValueError: for arguments that do not fit the model, or that `HFLM` has and this model does not.

    Source: github.com/EleutherAI/lm-evaluation-harness, lm_eval/models/huggingface.py of version 0.4.13.
    """

    def __init__(
        self,
        pretrained: str | Path | PreTrainedModel,
        *,
        method: str | None = None,
        to: int | None = None,
        factor: float | None = None,
        truncate: str = "left",
        max_length: int | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        revision: str = "main",
        attn_implementation: str | None = None,
        **arguments: Any,
    ) -> None:
        _refuse_others(arguments)
        if truncate not in TRUNCATIONS:
            raise ValueError(f"unknown truncate {truncate!r}. Available: {', '.join(TRUNCATIONS)}.")
        if device is None:
            device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
        self.truncate, self._scored, self._single = truncate, 1, 0
        self._how: dict[str, Any] = {"dtype": get_dtype(dtype), "revision": revision}
        if method is not None:
            self._how["scaling"] = "plain"
        if attn_implementation is not None:
            self._how["attn_implementation"] = attn_implementation
        source = str(pretrained) if isinstance(pretrained, Path) else pretrained
        if isinstance(source, str) and "tokenizer" not in arguments:
            found = resolve(source, revision=revision)
            if found.kind is Kind.LONGWAVE:  # of a hub model, whose name tells transformers nothing
                found.fetch(weights=False)
                arguments["tokenizer"] = str(tokenizer_folder(found.path, found.model) or found.path)
        super().__init__(source, device=device, revision=revision, max_length=max_length, **arguments)
        extend_plain(self.model, method, to, dashes="")
        handle = find_extension(self.model)
        if handle is not None and not handle.is_trained:
            raise ValueError("the model's extension is not trained yet. Run `longwave train` first.")
        self._keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        limit = max_length_of(self.model)
        if max_length is not None and limit is not None and max_length > limit:
            raise ValueError(f"max_length {max_length} is beyond the model's maximum of {limit} tokens. Lower it.")
        if factor is not None:
            set_policy(self.model, "fixed", factor)

    def _get_config(self, pretrained: str, **_: Any) -> None:
        """The model brings its config along, in whichever format the folder is."""
        self._model = load(pretrained, **self._how).to(self._device)
        self._config = self._model.config

    def _create_model(self, *_: Any, **__: Any) -> None:
        """Nothing: `_get_config`, which is called before, has loaded it."""

    @property
    def max_length(self) -> int:
        """The longest text, prompt and answer together: as asked for, or all that the extension reaches."""
        handle = find_extension(self.model)
        return self._max_length or (super().max_length if handle is None else handle.max_length)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """`HFLM`'s, for requests of one length at a time: no row is padded."""
        by_length: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, (texts, context, continuation) in enumerate(requests):
            # The tokens of the continuation that are read one by one; rolling requests have no texts.
            single = len(continuation) - 1 if texts is not None and must_decode(self.model) else 0
            by_length[min(len(context) + len(continuation) - 1, self.max_length), single].append(index)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="log-likelihoods") as bar:
            # The longest first: what does not fit fails now.
            for (_, self._single), rows in sorted(by_length.items(), reverse=True):
                alike = [requests[row] for row in rows]
                self._scored = max(len(continuation) for *_, continuation in alike)
                if self.batch_size == "auto" and override_bs is None:
                    override_bs = self._detect_batch_size(alike)
                found = super()._loglikelihood_tokens(alike, disable_tqdm=True, override_bs=override_bs)
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer
                bar.update(len(rows))
        return answers

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of the last tokens, which alone are scored: of all tokens of a long text they fill the memory."""
        if self._single:
            return decoded_logits(self.model, inps, max(1, inps.shape[1] - self._single))
        keep: dict[str, Any] = {"logits_to_keep": self._scored} if self._keeps_logits else {}
        cast = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype=cast, enabled=cast is not None):
            return self.model(inps, use_cache=False, **keep).logits[:, -self._scored :]

    @cached_property
    def closing(self) -> int:
        """How many special tokens the tokenizer appends to a text; they would say that a prompt is over."""
        return closing_length(self.tokenizer)

    def _appended(self, text: str, start: str | None, special: bool | None = None) -> int:
        """How many of them `HFLM` lets it append: none to a text that begins with the `start` token already."""
        if special is None:
            special = False if has_bos_prefix(text, start) else self.add_bos_token
        return 0 if special is False else self.closing

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """`HFLM`'s, without what the tokenizer appends to a text: it would stand between context and continuation."""
        appended = self._appended(string, self.tokenizer.decode(self.prefix_token_id), add_special_tokens)
        ids = super().tok_encode(string, add_special_tokens, **kwargs)
        ids = ids[: len(ids) - appended]
        check_ids(ids, self.model, self.tokenizer)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`HFLM`'s, after prompts that are too long lost their middle, if `truncate` says so, and open at their end."""
        if self.truncate == "middle" and left_truncate_len is not None:
            # Special tokens stay: those in the text are a chat template's. `HFLM` adds its own, which need room.
            encode = partial(self.tok_encode, add_special_tokens=False)
            decode = partial(self.tok_decode, skip_special_tokens=False)
            room = left_truncate_len - len(self.tok_encode(""))
            strings = [truncate_middle(text, encode, decode, room) for text in strings]
        appended = self._appended(strings[0], getattr(self.tokenizer, "bos_token", None))
        if appended and padding_side != "left":
            raise ValueError(f"prompts are padded on the left, got padding_side {padding_side!r}.")
        most = left_truncate_len and left_truncate_len + appended
        ids, mask = super().tok_batch_encode(strings, padding_side, most, truncation)
        kept = ids.shape[1] - appended  # padding is on the left: all rows end alike
        ids, mask = ids[:, :kept], mask[:, :kept]
        check_ids(ids, self.model, self.tokenizer)
        return ids, mask


def _refuse_others(arguments: dict[str, Any]) -> None:
    """Arguments that `HFLM` would swallow without effect."""
    known = inspect.signature(HFLM.__init__).parameters
    for name, value in list(arguments.items()):
        if name in NOT_OURS:
            if value:
                raise ValueError(f"the model longwave has no {name}: longwave.load reads the model. Leave it out.")
            del arguments[name]
        elif name not in known:
            names = [*inspect.signature(LongwaveLM.__init__).parameters, *(set(known) - set(NOT_OURS))]
            close = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"the model longwave has no argument {name!r}.{hint}")


def main() -> None:
    """lm-eval's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
