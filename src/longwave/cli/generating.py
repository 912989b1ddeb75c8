"""What `generate` and `chat` share: the prompt, a model made ready, sampling."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longwave.cli.evaluating import Loaded

NewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", metavar="N", help="Tokens of an answer at most; default 256, or what fits."),
]
DEFAULT_NEW_TOKENS = 256
Method = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="METHOD[@SCHEDULE]", help="Extend a Hugging Face model with it; see `longwave methods`."
    ),
]
To = Annotated[
    int | None,
    typer.Option("--to", metavar="TOKENS", help="Longest text, for --method; default 8 times the trained one."),
]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the most likely token every time.")]
TopP = Annotated[float, typer.Option("--top-p", help="Sample among the most likely tokens of that much together.")]
Chunk = Annotated[
    int | None,
    typer.Option("--prefill-chunk", metavar="N", help="Read the prompt N tokens at a time: less memory, same result."),
]
FACTOR = 8  # of --method without --to


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text of exactly one of both."""
    if (prompt is None) == (file is None):
        raise ValueError("give the prompt as --prompt TEXT or as --prompt-file FILE (- for stdin), one of them.")
    if file is None:
        text = prompt or ""
    elif str(file) == "-":
        text = sys.stdin.read()
    elif not file.is_file():
        raise ValueError(f"prompt file {file} does not exist. Give a text file, or - for stdin.")
    else:
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"prompt file {file} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if not text.strip():
        raise ValueError("the prompt is empty.")
    return text


def load(path: str, *, method: str | None, to: int | None, dtype: str, device: str | None) -> Loaded:
    """A folder's own extension, or `method` put on a plain model, of which RoPE scaling in its config is a part."""
    import longwave
    from longwave.cli import evaluating
    from longwave.extensions.handle import find_extension
    from longwave.extensions.reach import original_length_of
    from longwave.methods import parse_method

    loaded = evaluating.load(path, dtype, device)
    handle = find_extension(loaded.model)
    if handle is not None and not handle.recognised:
        if method is not None or to is not None:
            raise ValueError(f"{path} has its own extension. --method and --to are for plain models: leave them out.")
        return loaded
    if method is None:
        if to is not None:
            raise ValueError("--to says how far a --method is to reach: give one, for example --method yarn.")
        return loaded
    found, _ = parse_method(method)
    if found.trained:
        raise ValueError(f"{found.name} needs trained weights. Run `longwave train` first, or take ntk or yarn.")
    original = original_length_of(longwave.restore(loaded.model))
    if to is not None and to < original:
        raise ValueError(f"--to {to} is less than the {original} tokens that the model was trained for.")
    longwave.extend(loaded.model, method, max_factor=FACTOR if to is None else to / original)
    return loaded


def sampling(tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float, seed: int) -> dict[str, Any]:
    """Keyword arguments of `generate`; sets the seed."""
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be >= 0 and top p in (0, 1], got {temperature} and {top_p}.")
    from transformers import set_seed

    set_seed(seed)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": pad}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "pad_token_id": pad}


def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    max_new_tokens: int | None,
    policy: str,
    stream: bool,
    chunk: int | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The new text, and what `generate` reports of it."""
    import torch
    from transformers import TextStreamer

    import longwave
    from longwave.checkpoints.scaled import unrecognised
    from longwave.data.prompts import check_ids, prompt_ids
    from longwave.extensions.handle import find_extension
    from longwave.extensions.reach import reach_of

    for name, value in (("max new tokens", max_new_tokens), ("prefill chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    handle = find_extension(model)
    extensible = (handle is None or handle.recognised) and not unrecognised(model)
    ids = torch.tensor([prompt_ids(tokenizer, text)], dtype=torch.long, device=model.device)
    if not ids.numel():
        raise ValueError("the prompt is empty: the tokenizer finds no token in it.")
    check_ids(ids, model, tokenizer)
    length, limit = ids.shape[1], reach_of(model)
    if length >= limit:
        hint = "Shorten it, or extend the model: --method yarn --to TOKENS" if extensible else "Shorten it"
        raise ValueError(f"the prompt has {length} tokens and the model reads {limit}, the answer's included. {hint}.")
    if max_new_tokens is None:
        max_new_tokens = min(DEFAULT_NEW_TOKENS, limit - length)
    if length + max_new_tokens > limit:
        hint = "Shorten the prompt or lower --max-new-tokens"
        hint += ", or extend the model: --method yarn --to TOKENS." if extensible else "."
        raise ValueError(f"{length} tokens of prompt and {max_new_tokens} new ones are more than {limit}. {hint}")
    if handle is not None:
        longwave.set_policy(model, policy)
    started = time.perf_counter()
    with torch.no_grad():
        whole = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            prefill_chunk_size=chunk,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
            **options,
        )
    new = whole[0, length:]
    reached = length + len(new) if policy == "grow" else length + max_new_tokens
    return {
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "prompt_tokens": length,
        "new_tokens": len(new),
        "factor": 1.0 if handle is None else handle.dial.factor_for(reached),
        "policy": None if handle is None else policy,
        "seconds": time.perf_counter() - started,
    }
