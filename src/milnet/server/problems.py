"""What goes wrong in a request, as problem+json (RFC 9457): what was expected, what was got, what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Ends a request. `more`: further members; `headers`: of the answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})
        self.more = {
            name: value for name, value in {"expected": expected, "got": got, **more}.items() if value is not None
        }

    def to_json(self) -> dict[str, Any]:
        """The members."""
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }

    def response(self) -> Response:
        """The answer."""
        return Response(json.dumps(self.to_json()), self.status, self.headers, MEDIA_TYPE)


def busy(seconds: int) -> Problem:
    """Too much to do."""
    detail = f"more photos are waiting than the service takes at once; send it again in {seconds} s"
    return Problem(429, detail, expected="fewer photos at once", headers={"Retry-After": str(seconds)})
