"""A conversation on one key/value cache: every turn adds its new tokens, and t grows with the text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from longwave.data.prompts import chat_ids, check_ids, opening
from longwave.extensions.decoding import NEW_TOKENS
from longwave.extensions.generation import prepare_cache
from longwave.extensions.handle import find_extension
from longwave.extensions.reach import reach_of
from longwave.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPECULATIVE = ("prompt_lookup_num_tokens", "assistant_model", "assistant_early_exit")  # arguments of `generate`


class Conversation:
    """Turns of a user and a model.

    With a chat template the tokenizer formats the messages. Without one the texts follow each other, with a line break
    after each; this suits models that continue text. Cached tokens are used as far as the new text begins with them.

    Arguments:
        model: a causal LM, extended or not; `set_policy(model, "grow")` suits an extended model best.
        tokenizer: the model's.
        system: a message before the first turn.
        generation: keyword arguments of `model.generate`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        **generation: Any,
    ) -> None:
        self.model: Any = model
        self.tokenizer, self.system, self.generation = tokenizer, system, generation
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self._tokens: list[int] = []
        self.answered = 0  # tokens of the last answer
        self._empty_cache()

    @property
    def length(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._tokens)

    @property
    def max_length(self) -> int:
        """Tokens that the conversation may have."""
        return reach_of(self.model)

    @property
    def factor(self) -> float:
        """t at the present length; 1 for a model that is not extended."""
        handle = find_extension(self.model)
        return 1.0 if handle is None else handle.dial.factor_for(max(1, self.length))

    def say(self, text: str, *, max_new_tokens: int = NEW_TOKENS, streamer: Any = None) -> str:
        """Add a message, and return the model's answer.

        Raises:
            ValueError: if the conversation has no room for an answer, or tokens that the model does not know; the
                message is then not added.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._encode(messages)
        check_ids(ids, self.model, self.tokenizer)
        room = self.max_length - len(ids)
        if room < 1:
            raise ValueError(
                f"the conversation would have {len(ids):,} tokens, and the model reads {self.max_length:,}. "
                "/reset or a new Conversation starts over."
            )
        try:
            answer = self._answer(ids, min(room, max_new_tokens), streamer)
        except BaseException:  # after an interruption, too: the cache may then be half a step ahead of our record
            self._empty_cache()
            raise
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def save(self, path: Path | str) -> Path:
        """Write the messages as JSON; an existing file is a `ValueError`."""
        path = Path(path)
        if path.exists():
            raise ValueError(f"{path} exists. Choose another name.")
        write_json(path, self.messages)
        return path

    def _answer(self, ids: list[int], most: int, streamer: Any) -> str:
        self._keep_common(ids)
        whole = torch.tensor([ids], device=self.model.device)
        result = self.model.generate(
            whole,
            attention_mask=torch.ones_like(whole),
            past_key_values=self._cache,
            max_new_tokens=most,
            streamer=streamer,
            return_dict_in_generate=True,
            **self.generation,
        )
        self._tokens = result.sequences[0].tolist()
        new = self._tokens[len(ids) :]
        self.answered = len(new)
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

    def _keep_common(self, ids: list[int]) -> None:
        """Cut the cache to the tokens that the new text begins with (a template may rewrite earlier turns)."""
        if any(self.generation.get(name) is not None for name in SPECULATIVE):
            self._empty_cache()  # transformers 5.23 speculates wrongly where a cache holds most of the prompt
            return
        held = int(self._cache.get_seq_length())
        same = 0
        while same < min(held, len(ids) - 1) and self._tokens[same] == ids[same]:
            same += 1
        if same < held:
            if all(getattr(layer, "is_croppable", False) for layer in self._cache.layers):
                self._cache.crop(same - held)
            else:
                self._empty_cache()

    def _empty_cache(self) -> None:
        self._cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        prepare_cache(self.model, self._cache)

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        if self.tokenizer.chat_template:
            return chat_ids(self.tokenizer, messages)
        # The answer is kept as tokens: its text may tokenise in another way.
        start = self._tokens or opening(self.tokenizer)
        if not self._tokens:
            text = "".join(f"{message['content']}\n" for message in messages)
        else:
            text = f"\n{messages[-1]['content']}\n"
        return [*start, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]
