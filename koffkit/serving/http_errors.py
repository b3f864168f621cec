"""Errors as OpenAI's clients know them."""

from __future__ import annotations

from typing import Any

from ..errors import IntegrityError, UsageError
from .engine_rows import QueueFull, Stopped, TimedOut, UnknownMemory

INVALID, OVERLOADED, FAILED = "invalid_request_error", "rate_limit_error", "server_error"
UNSUPPORTED = "unsupported"
"""The type of pydantic's finding of a field that this server does not do."""
RETRY_SECONDS = {429: 1, 503: 5}


class ApiError(UsageError):
    """An error with its HTTP status.

    Args:
        status: of HTTP.
        message: one line with the remedy.
        code: for programs.
        param: the field of the request that is wrong.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        kind = INVALID if self.status < 500 else FAILED
        if self.status == 429:
            kind = OVERLOADED
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, where that helps."""
        seconds = RETRY_SECONDS.get(self.status)
        return {} if seconds is None else {"Retry-After": str(seconds)}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that cannot be answered as it is written."""
    return ApiError(400, message, code, param)


def as_api_error(error: Exception) -> ApiError:
    """Any error, with its status; nothing of the inside of a library gets out."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), "queue_full")
    if isinstance(error, Stopped):
        return ApiError(503, str(error), "shutting_down")
    if isinstance(error, TimedOut):
        return ApiError(504, str(error), "timeout")
    if isinstance(error, UnknownMemory):
        return ApiError(404, str(error), "model_not_found", "model")
    if isinstance(error, UsageError):
        return invalid(str(error))
    if isinstance(error, IntegrityError):
        return ApiError(500, str(error), "damaged_memory")
    return ApiError(500, f"the server failed ({type(error).__name__}); its log says more.", "failed")


def validation_error(errors: list[dict[str, Any]]) -> ApiError:
    """The first finding of pydantic in our words, and how many more there are.

    Args:
        errors: as `RequestValidationError.errors()` has them.
    """
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be read")
        return invalid(f"the body is not JSON: {reason}.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return invalid(f"{place}: not known here; leave it out{more}.", place, "unknown_parameter")
    if first["type"] == UNSUPPORTED:
        return invalid(f"{first['msg']}{more}.", first["ctx"]["name"], "unsupported_parameter")
    text = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return invalid(f"{place or 'body'}: {text[0].lower()}{text[1:]}{more}.", place or None)
