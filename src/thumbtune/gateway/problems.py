"""What a request is refused with, in the shape that OpenAI's clients read."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Literal

log = logging.getLogger("thumbtune.gateway")

ErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]


class Problem(Exception):  # noqa: N818 - it is what the client has, not we
    """An answer other than success. `message` says what, where, and what to do; no user's text is in it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def as_body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": _type_of(self.status),
                "param": self.param,
                "code": self.code,
            }
        }


def busy(message: str, retry_seconds: float = 1.0) -> Problem:
    """503 with Retry-After: nothing is wrong with the request, come again."""
    return Problem(503, message, code="busy", headers={"Retry-After": str(max(1, round(retry_seconds)))})


def log_fault(error: BaseException) -> None:
    """A fault of ours, with its place and without its message: that might quote what somebody wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    log.error(
        "a fault of the gateway",
        extra={
            "fault": type(error).__name__,
            "places": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
        },
    )


def _type_of(status: int) -> ErrorType:
    kinds: dict[int, ErrorType] = {
        401: "authentication_error",
        403: "permission_error",
        429: "rate_limit_error",
    }
    if status in kinds:
        return kinds[status]
    return "server_error" if status >= 500 else "invalid_request_error"


_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


def describe_validation(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """A schema's complaints as one 400, without the text that they are about."""
    first = errors[0]
    # a field that we do not know is the client's own word, and may be a text: only names are said again
    named = [str(part) for part in first["loc"] if part != "body"]
    place = ".".join(part if _NAME.fullmatch(part) else "…" for part in named)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    text = str(first["msg"]).removeprefix("Value error, ")
    return Problem(400, f"{place or 'body'}: {text}{more}", code="invalid_request", param=place or None)
