"""What the errors of other libraries say, and what to do where a library is missing."""

from __future__ import annotations

OUT_OF_MEMORY = "out of memory", "can't allocate memory", "not enough memory"  # how torch says it on its devices


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch, on any device, could not get memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def lines(error: BaseException) -> list[str]:
    """The lines of an error's message that are not empty; its class if it has no message."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    return lines(error)[0].rstrip(".")


def install(extra: str) -> str:
    """The command that installs an extra. It works wherever longwave itself came from: pip finds it installed."""
    return f"pip install 'longwave[{extra}]'"
