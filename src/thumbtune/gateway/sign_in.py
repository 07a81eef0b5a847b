"""The page's door: an API key in, a signed cookie out. On loopback without keys the door stands open."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from thumbtune.gateway.problems import Problem
from thumbtune.gateway.service import Gateway

COOKIE = "thumbtune_session"
PAGE = "/page"
DOOR = "/sign-in"

router = APIRouter(include_in_schema=False)

_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>thumbtune</title><style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }}
form {{ max-width: 24rem; margin: 18vh auto; padding: 0 1rem; display: grid; gap: .8rem }}
input, button {{ font: inherit; padding: .5rem .7rem }} p {{ color: #b3261e; margin: 0 }}
</style><form method="post" action="/sign-in"><h1>thumbtune</h1>
<label for="key">API key · API anahtarı</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in · Giriş</button>{problem}</form></html>"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


def find_user(request: Request) -> str | None:
    """The user name of the page's session, or None: `local` on an open loopback, else the id of a key."""
    gateway: Gateway = request.app.state.gateway
    if gateway.doorkeeper.is_open:
        return "local"
    session = request.cookies.get(COOKIE)
    identity = None if session is None else gateway.doorkeeper.identify_session(session)
    return None if identity is None else identity.key_id


@router.get("/")
async def go_to_page() -> Response:
    return RedirectResponse(PAGE)


@router.get("/sign-in")
async def show_form() -> Response:
    return _render("")


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    form = await request.form()
    secret = form.get("key")
    try:
        identity = await gateway.doorkeeper.identify(f"Bearer {secret}", None)
    except Problem as problem:
        return _render(problem.message, 401)
    response = RedirectResponse(PAGE, status_code=303)
    if identity.key_id is not None:
        tokens = gateway.doorkeeper.sessions
        response.set_cookie(
            COOKIE,
            tokens.sign(identity.key_id),
            max_age=int(tokens.lifetime_seconds),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https" or not gateway.settings.on_loopback,
        )
    return response


@router.post("/sign-out")
async def sign_out() -> Response:
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(COOKIE)
    return response


def _render(problem: str, status: int = 200) -> Response:
    text = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return HTMLResponse(_FORM.format(problem=text), status)
