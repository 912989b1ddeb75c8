"""LongBench's rule for prompts that are too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def truncate_middle(
    text: str, encode: Callable[[str], Sequence[int]], decode: Callable[[Sequence[int]], str], room: int
) -> str:
    """A text of more than `room` tokens without its middle: instruction and question stand at its two ends.

    Text = decode(first ⌊room/2⌋ tokens) + decode(last ⌊room/2⌋ tokens), as in LongBench. A text that was cut may have
    more tokens when it is read again. If these are more than `room`, more is cut.

    Arguments:
        encode: text -> token ids, with those that the tokenizer puts in front of a text.
        decode: token ids -> text, without special tokens.
        room: how many tokens the result may have.

    Raises:
        ValueError: if no text fits into `room`.

    Source: github.com/THUDM/LongBench, pred.py; arXiv 2308.14508, section 4.
    """
    ids, kept = encode(text), room
    if len(ids) <= room:
        return text
    while (half := kept // 2) > 0:
        cut = decode(ids[:half]) + decode(ids[-half:])
        if (over := len(encode(cut)) - room) <= 0:
            return cut
        kept = 2 * half - over
    raise ValueError(f"{room} tokens are too few for a prompt of {len(ids)}. Raise the maximum length.")
