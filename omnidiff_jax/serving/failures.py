"""Why a request is not answered, in the shape that OpenAI's clients read."""

from typing import Any

from omnidiff_jax.errors import UserError
from omnidiff_jax.sampling.canvas import TooLong

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class Failure(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        param: the field that is at fault, as the client wrote it, or None.
        code: a word for programs, or None.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON that a client gets."""
        kind = KINDS.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def failure_of(error: BaseException) -> Failure:
    """What a client is told of an exception: of a user's error its words, of a fault here nothing."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, TooLong):
        return Failure(str(error), code="context_length_exceeded")
    if isinstance(error, UserError):
        return Failure(str(error), code="invalid_value")
    return Failure("the server failed on this request; it is in its log", status=500, code="internal_error")


def unsupported(param: str, message: str) -> Failure:
    """Of a field or value that nothing here would heed."""
    return Failure(f"{param}: {message}", param=param, code="unsupported_parameter")
