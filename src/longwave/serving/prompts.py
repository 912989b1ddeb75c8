"""The prompts of a request in tokens."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longwave.data.prompts import chat_ids, check_ids, prompt_ids
from longwave.serving.errors import ApiError

ROLES = ("system", "developer", "user", "assistant")
FORMS = "prompt must be a text, a list of texts, a list of token ids, or a list of lists of token ids, none empty."


def prompts_of(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompt: Any) -> list[list[int]]:
    """The prompts of a completion: one, or several of the same form.

    Raises:
        ApiError: for another form, an empty prompt, and token ids that the model does not know.
    """
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    return [one_prompt(tokenizer, model, each) for each in (prompt if several else [prompt])]


def one_prompt(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        ids = prompt_ids(tokenizer, prompt)
        checked(ids, model, tokenizer)
    elif isinstance(prompt, list) and all(type(id) is int for id in prompt):
        ids, rows = prompt, len(model.get_input_embeddings().get_parameter("weight"))
        if wrong := [id for id in ids if not 0 <= id < rows]:
            raise ApiError(400, f"prompt has the token id {wrong[0]}; ids are from 0 to {rows - 1}.", param="prompt")
    else:
        raise ApiError(400, FORMS, param="prompt")
    if not ids:
        raise ApiError(400, FORMS if prompt == [] else "prompt is empty: it has no token.", param="prompt")
    return ids


def chat_prompt(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, messages: Any) -> list[int]:
    """The prompt of a chat, by the tokenizer's template.

    Raises:
        ApiError: for a tokenizer without a template, and messages that it cannot write.
    """
    if not tokenizer.chat_template:
        raise ApiError(400, "the model's tokenizer has no chat template. Use /v1/completions.", code="no_chat_template")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of at least one message.", param="messages")
    plain = [message_of(message, f"messages[{number}]") for number, message in enumerate(messages)]
    try:
        ids = chat_ids(tokenizer, plain)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None
    if not ids:
        raise ApiError(400, "the chat template makes no token of these messages.", param="messages")
    checked(ids, model, tokenizer)
    return ids


def checked(ids: list[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        check_ids(ids, model, tokenizer)
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def message_of(message: Any, name: str) -> dict[str, str]:
    """A message of text. What it has besides role and content is refused: templates may leave it out silently."""
    if not isinstance(message, dict):
        raise ApiError(400, f"{name} must be an object with role and content.", param=name)
    further = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if further:
        raise ApiError(400, f"{further[0]} of {name} is not supported. Leave it out.", param=f"{name}.{further[0]}")
    role = message.get("role")
    if role not in ROLES:
        raise ApiError(400, f"role of {name} must be one of {', '.join(ROLES)}, got {role!r}.", param=f"{name}.role")
    return {"role": role, "content": content_of(message.get("content"), name)}


def content_of(content: Any, name: str) -> str:
    """Text, or parts of text, which follow one another."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    raise ApiError(
        400, f'content of {name} must be a text, or a list of {{"type": "text", "text": ...}}.', param=f"{name}.content"
    )


def is_text(part: Any) -> bool:
    """Whether a part of a message is text alone."""
    text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    return text and set(part) == {"type", "text"}
