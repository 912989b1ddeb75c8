"""How the next token is chosen. The help of `longwave generate` and `chat` is made from this file: no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longwave.settings import Settings, setting

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 256  # of an answer, where there is room


@dataclass(frozen=True)
class Decoding(Settings):
    """How an answer is decoded: greedily by default, whatever the model's generation config says of sampling."""

    max_new_tokens: int | None = setting(
        None, f"Tokens of an answer at most; default {NEW_TOKENS}, or what fits.", least=1
    )
    temperature: float = setting(0.0, "0 takes the most likely token every time.")
    top_p: float = setting(1.0, "Sample among the most likely tokens whose probabilities sum to this.")
    seed: int = setting(0, "Seed of every random draw.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature must be >= 0 and top p in (0, 1], got {self.temperature} and {self.top_p}.")

    def arguments(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Keyword arguments of `model.generate`."""
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": pad}
        how = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"do_sample": True, **how, "pad_token_id": pad}


def new_tokens(model: PreTrainedModel, ids: Tensor, most: int, arguments: dict[str, Any]) -> Tensor:
    """What the model generates after one prompt.

    Arguments:
        ids: the prompt, [1, tokens].
        most: tokens of the answer.
        arguments: further ones of `model.generate`, as `Decoding.arguments` gives them.
    """
    import torch

    with torch.no_grad():
        whole: Tensor = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, **arguments
        )
    return whole[0, ids.shape[1] :]
