"""The errors of the API, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

LONGEST = 400  # characters of a message: it may repeat a value of the request
HANGS_UP = 499  # the status, in metrics, of a request whose client went away before there was an answer


class ApiError(Exception):
    """A request that is answered with an error.

    Arguments:
        status: of HTTP.
        message: one sentence or two for the person who wrote the request.
        code: a word for programs.
        param: the field of the request that is at fault.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.message = message if len(message) <= LONGEST else message[: LONGEST - 3] + "..."

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def draining() -> ApiError:
    """The server has been told to stop."""
    return ApiError(503, "the server is shutting down. Ask again when it is back.", code="shutting_down")
