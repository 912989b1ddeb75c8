"""Tell an error that says that the memory does not suffice from any other error."""

from __future__ import annotations

WORDS = "out of memory", "can't allocate memory", "not enough memory"  # how torch says it on its devices


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch, on any device, could not get memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)
