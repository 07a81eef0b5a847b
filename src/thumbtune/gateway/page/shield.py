"""Between a browser and Gradio: the few routes that the page needs, and a document that runs no script but its own.


Gradio brings routes for uploads, files, a proxy, an API and more. The page needs none of them, so they are not there:
a route is passed on only if it is on the list below. Gradio's document holds inline scripts; each gets a nonce of its
own response, so a script that a text smuggled into the page would not run.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from html import escape

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thumbtune.gateway.page.words import LANGUAGES

COOKIE = "thumbtune_language"

PAGE_CSP = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
"""The page's Content-Security-Policy. `unsafe-inline` for scripts is taken back by `Shield`, which adds a second
policy with a nonce to the document (a browser enforces both); for styles it stays, since Gradio sets style attributes.
Nothing needs `unsafe-eval`, `blob:`, workers or another host."""

_NEEDED = re.compile(
    r"""/?$|/(?:static|assets)/|/(?:favicon\.ico|theme\.css|config/?)$
    |/gradio_api/(?:queue/(?:join|data)|cancel|reset/?|heartbeat/[\w-]+|startup-events|login_check/?|app_id/?)$""",
    re.VERBOSE,
)
"""Gradio's routes that the page uses."""

_FOREIGN = re.compile(
    r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>|<link rel="manifest"[^>]*>', re.IGNORECASE
)
"""What Gradio's document says about Gradio to other sites, and a manifest that is not there."""


SPOKEN_BY_SCRIPT = ("conversation", "why", "edit_answer", "page_language", "evidence")
"""Words that `page.js` gives to screen readers."""


class Shield:
    """ASGI middleware of one mounted Gradio app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        language: str,
        path: str,
        identify: Callable[[Request], str | None],
        sign_in_path: str,
    ) -> None:
        self.app = app
        self.language = language
        self.path = path
        self.identify = identify
        self.sign_in_path = sign_in_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = scope["path"].removeprefix(scope.get("root_path", ""))
        if not _NEEDED.match(route):
            await PlainTextResponse("There is no such thing here.", 404)(scope, receive, send)
        elif route in ("", "/") and scope["method"] == "GET":
            await self._send_document(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _send_document(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.identify(Request(scope)) is None:
            root = scope.get("root_path", "").removesuffix(f"{self.path}/{self.language}")
            await RedirectResponse(f"{root}{self.sign_in_path}", 303)(scope, receive, send)
            return
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message = {}
        body = bytearray()

        async def rewrite(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            nonce = secrets.token_urlsafe(16)
            document = rewrite_document(body.decode(), self.language, nonce).encode()
            dropped = (b"content-length", b"etag")
            headers = [(name, value) for name, value in start["headers"] if name.lower() not in dropped]
            headers += [(b"content-length", str(len(document)).encode()), *self._document_headers(nonce)]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": document})

        await self.app({**scope, "headers": plain}, receive, rewrite)

    def _document_headers(self, nonce: str) -> list[tuple[bytes, bytes]]:
        cookie = f"{COOKIE}={self.language}; Path={self.path}; Max-Age=31536000; SameSite=Lax; HttpOnly"
        return [
            (b"content-security-policy", f"script-src 'self' 'nonce-{nonce}'".encode()),
            (b"cache-control", b"no-store"),
            (b"set-cookie", cookie.encode()),
        ]


def rewrite_document(document: str, language: str, nonce: str) -> str:
    """Gradio's document in its language, with our script and style, and a nonce on each script of its own."""
    document = _FOREIGN.sub("", document)
    document = document.replace("<script", f'<script nonce="{nonce}"')
    document = re.sub(r'<html\s+lang="\w*"', f'<html lang="{language}"', document, count=1)
    words = LANGUAGES[language]
    named = "".join(f' data-{name}="{escape(words[name])}"' for name in SPOKEN_BY_SCRIPT)
    ours = (
        f'<script nonce="{nonce}" src="../page.js" data-language="{language}"{named}></script>'
        '<link rel="stylesheet" href="../page.css"><link rel="icon" href="../thumb.svg">'
    )
    return re.sub(r'(<base href="[^"]*"\s*/?>)', lambda found: found[1] + ours, document, count=1)
