"""Who may do what, what a stranger can send, and what never leaves the house."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.conftest import Serve
from gateway.house import ROLES, Keyed, Served, wait_until
from gateway.scripted import ScriptedEngine
from thumbtune.errors import ConfigError, StoreError
from thumbtune.gateway import middleware
from thumbtune.gateway.identity import Tokens
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.rates import Rates
from thumbtune.gateway.run import run_gateway
from thumbtune.gateway.settings import GatewaySettings
from thumbtune.store.keys import revoke_key
from thumbtune.store.secrets import Secrets, rotate_signing_secret

SENTINEL = "zq7-private-words"


# Vote tokens


def test_a_token_is_good_for_its_own_completion_only(keyed: Keyed) -> None:
    mine, other = keyed.ask("one", keyed.client), keyed.ask("two", keyed.client)
    crossed = keyed.vote(completion_id=other["completion_id"], vote_token=mine["vote_token"], label=True)
    assert crossed.status_code == 403
    assert crossed.json()["error"]["code"] == "token_mismatch"
    assert keyed.read_presses(other["completion_id"]) == []
    own = keyed.vote(completion_id=mine["completion_id"], vote_token=mine["vote_token"], label=True)
    assert own.status_code == 200


def test_a_token_speaks_for_the_user_it_was_made_for(keyed: Keyed) -> None:
    mine = keyed.ask("x", keyed.speaker, headers={"Thumbtune-User": "ayse"})
    vote = keyed.vote(completion_id=mine["completion_id"], vote_token=mine["vote_token"], label=True)
    assert vote.status_code == 200
    (press,) = keyed.read_presses(mine["completion_id"])
    assert press.user_key == keyed.read_completions()[mine["completion_id"]].user_key
    # a key beside the token does not change whose vote it is
    beside = keyed.vote(
        keyed.voter, completion_id=mine["completion_id"], vote_token=mine["vote_token"], label=False
    )
    assert beside.json()["status"] == "changed"


def test_a_changed_or_truncated_token_is_refused(keyed: Keyed) -> None:
    mine = keyed.ask("x", keyed.client)
    name, token = mine["completion_id"], mine["vote_token"]
    content, stamp, signature = token.rsplit(".", 2)
    tampered = [
        token[:-1],
        token[: len(token) // 2],
        "",
        ".",
        f"{content}.{stamp}.",
        f"{content}.{stamp}.{signature[::-1]}",
        f"{content[:-2]}xx.{stamp}.{signature}",
        f"{content}.zzzzzz.{signature}",
        token + "x",
        "é" * 40,
    ]
    for forged in tampered:
        response = keyed.vote(completion_id=name, vote_token=forged, label=True)
        assert response.status_code == 401, forged
        assert response.json()["error"]["code"] == "token_invalid"
    assert keyed.read_presses(name) == []


def test_a_token_of_another_installation_and_a_session_are_no_vote_tokens(keyed: Keyed) -> None:
    name = keyed.ask("x", keyed.client)["completion_id"]
    user = keyed.read_completions()[name].user_key
    foreign = Tokens(Secrets("u", ["another secret"]), "vote", 100).sign(name, user)
    session = keyed.gateway.doorkeeper.sessions.sign(name, user)
    for token in (foreign, session):
        assert keyed.vote(completion_id=name, vote_token=token, label=True).status_code == 401


def test_an_expired_token_is_refused(serve_one: Serve) -> None:
    house = serve_one(vote_token_days=1 / 86_400)
    mine = house.ask()
    press = {"completion_id": mine["completion_id"], "vote_token": mine["vote_token"], "label": True}
    assert house.vote(**press).status_code == 200
    time.sleep(2.1)  # tokens count whole seconds
    response = house.vote(**press)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "token_expired")


def test_after_a_rotation_the_older_tokens_hold_until_their_secret_is_dropped(
    serve_one: Serve, tmp_path: Path
) -> None:
    first = serve_one(folder=tmp_path)
    mine = first.ask()
    press = {"completion_id": mine["completion_id"], "vote_token": mine["vote_token"]}
    rotate_signing_secret(tmp_path / "secrets.json")
    second = serve_one(folder=tmp_path)
    assert second.vote(label=True, **press).json()["status"] == "recorded"
    newer = second.ask()
    for _ in range(2):
        rotate_signing_secret(tmp_path / "secrets.json")
    third = serve_one(folder=tmp_path)
    assert third.vote(label=False, **press).status_code == 401
    still = {"completion_id": newer["completion_id"], "vote_token": newer["vote_token"]}
    assert third.vote(label=True, **still).status_code == 200
    # people stay who they were
    rows = third.read_completions()
    assert rows[mine["completion_id"]].user_key == rows[newer["completion_id"]].user_key


# Who asks


def test_a_user_in_the_body_counts_for_nothing(keyed: Keyed) -> None:
    plain = keyed.ask("x", keyed.client)["completion_id"]
    named = keyed.ask("x", keyed.client, user="somebody else")["completion_id"]
    rows = keyed.read_completions()
    assert rows[plain].user_key == rows[named].user_key
    assert "somebody else" not in json.dumps([str(row) for row in rows.values()])
    assert keyed.vote(keyed.client, completion_id=plain, label=True, user="x").status_code == 400
    assert keyed.vote(keyed.client, completion_id=plain, label=True, user_key="x").status_code == 400


def test_an_end_user_is_heard_from_a_key_that_speaks_for_users_only(keyed: Keyed) -> None:
    ayse = {"Thumbtune-User": "ayse"}
    refused = keyed.chat("x", keyed.client, headers=ayse)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "may_not_speak_for_users"
    first = keyed.ask("x", keyed.speaker, headers=ayse)["completion_id"]
    again = keyed.ask("x", keyed.speaker, headers=ayse)["completion_id"]
    mehmet = keyed.ask("x", keyed.speaker, headers={"Thumbtune-User": "mehmet"})["completion_id"]
    rows = keyed.read_completions()
    assert rows[first].user_key == rows[again].user_key
    assert rows[first].user_key != rows[mehmet].user_key
    assert "ayse" not in str(rows[first]).replace("chatcmpl", "")
    vote = keyed.vote(keyed.speaker, headers={"Thumbtune-User": "mehmet"}, completion_id=first, label=True)
    assert vote.status_code == 404, "one end user does not vote for another"


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_an_end_user_has_a_name_of_some_length(keyed: Keyed, name: str) -> None:
    assert keyed.chat("x", keyed.speaker, headers={"Thumbtune-User": name}).status_code == 400


def test_two_products_cannot_meet_in_one_end_user(keyed: Keyed) -> None:
    second = keyed.make_key("client", speaks_for_users=True)
    ayse = {"Thumbtune-User": "ayse"}
    name = keyed.ask("x", keyed.speaker, headers=ayse)["completion_id"]
    other = keyed.ask("x", second, headers=ayse)["completion_id"]
    rows = keyed.read_completions()
    assert rows[name].user_key != rows[other].user_key
    assert keyed.vote(second, headers=ayse, completion_id=name, label=True).status_code == 404


def test_the_open_house_hears_no_end_user(open_house: Served) -> None:
    assert open_house.chat("x", headers={"Thumbtune-User": "ayse"}).status_code == 403


BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/feedback": {"completion_id": "chatcmpl-nothing", "label": True},
    "/v1/import": {"source": "old"},
    "/v1/champion": {"version": "base-1"},
    "/v1/canary/end": {"state": "withdrawn"},
    "/v1/adapters": {"folder": "/nowhere"},
    "/v1/keys": {"name": "made", "role": "voter"},
}


def test_every_route_has_its_roles_decided(keyed: Keyed) -> None:
    paths = keyed.http.get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(ROLES)


@pytest.mark.parametrize("role", ["nobody", "client", "voter", "admin"])
@pytest.mark.parametrize(("method", "path"), list(ROLES))
def test_each_door_opens_to_its_roles_only(keyed: Keyed, method: str, path: str, role: str) -> None:
    headers = {} if role == "nobody" else {"Authorization": f"Bearer {getattr(keyed, role)}"}
    response = keyed.http.request(
        method,
        path.format(completion_id="nothing", user="nobody", key_id="nothing"),
        headers=headers,
        json=BODIES.get(path),
    )
    if role in ROLES[method, path]:
        assert response.status_code in (200, 204, 400, 404, 409), response.text
    elif role == "nobody":
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
    else:
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Basic {key}", "{key}", "Bearer {key} x", "Bearer  {key}", "Bearer {upper}"],
)
def test_a_key_in_the_wrong_shape_opens_nothing(keyed: Keyed, authorization: str) -> None:
    value = authorization.format(key=keyed.admin, upper=keyed.admin.upper())
    response = keyed.http.get("/v1/state", headers={"Authorization": value})
    assert response.status_code == 401
    assert keyed.admin not in response.text


def test_a_revoked_key_stops_within_two_seconds_and_so_does_its_session(keyed: Keyed) -> None:
    key = keyed.make_key("admin")
    key_id = keyed.gateway.doorkeeper.keys.find(key).id  # type: ignore[union-attr]
    with httpx.Client(base_url=keyed.address, headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.get("/v1/state").status_code == 200
        revoke_key(keyed.gateway.store, key_id)  # as another process does it
        wait_until(lambda: client.get("/v1/state").status_code == 401, seconds=2)
    session = keyed.gateway.doorkeeper.sessions.sign(key_id)
    assert keyed.gateway.doorkeeper.identify_session(session) is None


def test_a_key_that_is_revoked_here_stops_at_once(keyed: Keyed) -> None:
    admin = {"Authorization": f"Bearer {keyed.admin}"}
    made = keyed.http.post("/v1/keys", json={"name": "short", "role": "admin"}, headers=admin).json()
    own = {"Authorization": f"Bearer {made['secret']}"}
    assert keyed.http.get("/v1/state", headers=own).status_code == 200
    assert keyed.http.delete(f"/v1/keys/{made['id']}", headers=admin).status_code == 204
    assert keyed.http.get("/v1/state", headers=own).status_code == 401
    assert keyed.http.delete(f"/v1/keys/{made['id']}", headers=admin).status_code == 404
    listed = keyed.http.get("/v1/keys", headers=admin).text
    assert made["secret"] not in listed


def test_revoking_the_last_key_does_not_open_the_house(serve_one: Serve) -> None:
    house = serve_one()
    assert house.http.get("/v1/state").status_code == 200
    key = house.make_key("admin")
    wait_until(lambda: house.http.get("/v1/state").status_code == 401, seconds=2)
    key_id = house.gateway.doorkeeper.keys.find(key).id  # type: ignore[union-attr]
    headers = {"Authorization": f"Bearer {key}"}
    assert house.http.delete(f"/v1/keys/{key_id}", headers=headers).status_code == 204
    assert house.http.get("/v1/state").status_code == 401
    assert house.http.get("/v1/state", headers=headers).status_code == 401


def test_each_act_of_an_admin_is_in_the_audit_trail(serve_one: Serve, tmp_path: Path) -> None:
    house = serve_one()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (adapter / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    mine = house.ask(SENTINEL)
    house.vote(completion_id=mine["completion_id"], label=True, comment=SENTINEL)
    user = house.read_completions()[mine["completion_id"]].user_key
    loaded = house.http.post("/v1/adapters", json={"folder": str(adapter)})
    assert loaded.status_code == 200, loaded.text
    version = loaded.json()["version"]
    house.http.post("/v1/champion", json={"version": version})
    assert house.ask()["model_version"] == version
    house.http.post("/v1/champion/back")
    erased = house.http.delete(f"/v1/users/{user}").json()
    assert (erased["n_completions"], erased["n_votes"]) == (2, 1)
    key = house.http.post("/v1/keys", json={"name": "a", "role": "admin"}).json()
    admin = {"Authorization": f"Bearer {key['secret']}"}
    assert house.http.delete(f"/v1/keys/{key['id']}", headers=admin).status_code == 204
    second = house.make_key("admin")
    trail = house.http.get("/v1/audit", headers={"Authorization": f"Bearer {second}"})
    lines = [(line["act"], line["actor"]) for line in reversed(trail.json()["data"])]
    assert lines == [
        ("point", "start of the gateway"),
        ("load adapter", "loopback"),
        ("point", "loopback"),
        ("point", "loopback"),
        ("erase user", "loopback"),
        ("create key", "loopback"),
        ("revoke key", key["id"]),
        ("create key", "command line"),
    ]
    assert SENTINEL not in trail.text
    assert key["secret"] not in trail.text


# The house itself


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_no_key_no_open_door_to_other_machines(tmp_path: Path, host: str) -> None:
    settings = GatewaySettings(
        host=host, port=0, upstream="http://127.0.0.1:9/v1", store=str(tmp_path / "v.db"), page=False
    )
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with pytest.raises(ConfigError, match="there is no API key yet"):
            run_gateway(settings)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_known_by_each_of_its_names(host: str) -> None:
    assert GatewaySettings(host=host).on_loopback


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""])
@pytest.mark.parametrize("path", ["/healthz", "/v1/state", "/openapi.json", "/nothing"])
def test_a_page_that_renames_its_own_host_is_refused(open_house: Served, host: str, path: str) -> None:
    response = open_house.http.get(path, headers={"Host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8400", "127.0.0.1:1", "[::1]:8400", "[::1]"])
def test_the_loopback_answers_to_its_own_names(open_house: Served, host: str) -> None:
    assert open_house.http.get("/healthz", headers={"Host": host}).status_code == 200


def test_named_hosts_are_answered_and_no_others(serve_one: Serve) -> None:
    house = serve_one(allowed_hosts=["votes.example"])
    assert house.http.get("/healthz", headers={"Host": "votes.example:443"}).status_code == 200
    assert house.http.get("/healthz", headers={"Host": "other.example"}).status_code == 400


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", None])
@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/chat/completions", "/v1/keys", "/v1/champion"])
def test_a_form_of_another_page_is_not_read_as_json(
    open_house: Served, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = open_house.http.post(path, content=json.dumps(BODIES[path]).encode(), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_site_cannot_act_while_no_key_is_needed(open_house: Served, origin: str) -> None:
    # no body is needed here, so a plain form could send it
    response = open_house.http.post("/v1/champion/back", headers={"Origin": origin})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")
    assert open_house.chat("x", headers={"Origin": origin}).status_code == 403
    own = {"Origin": open_house.address}
    assert open_house.chat("x", headers=own).status_code == 200


def test_cors_is_for_named_origins_and_for_votes(serve_one: Serve) -> None:
    house = serve_one(allowed_origins=["https://shop.example"])
    shop, evil = {"Origin": "https://shop.example"}, {"Origin": "https://evil.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = house.http.options("/v1/feedback", headers=shop | asks)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert (
        "Access-Control-Allow-Origin" not in house.http.options("/v1/feedback", headers=evil | asks).headers
    )
    mine = house.ask()
    press = {"completion_id": mine["completion_id"], "vote_token": mine["vote_token"], "label": True}
    voted = house.vote(headers=shop, **press)
    assert voted.status_code == 200
    assert voted.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "Access-Control-Allow-Credentials" not in voted.headers
    assert house.vote(headers=evil, **press).status_code == 403
    assert house.http.post("/v1/champion/back", headers=shop).status_code == 403, "it may vote, not govern"


def test_without_named_origins_there_is_no_cors_at_all(keyed: Keyed) -> None:
    response = keyed.http.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control-")]


SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


def test_every_answer_has_the_security_headers(keyed: Keyed, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    admin = {"Authorization": f"Bearer {keyed.admin}"}
    monkeypatch.setattr(keyed.gateway, "describe_state", fail)
    answers = [
        keyed.http.get("/healthz"),
        keyed.http.get("/nothing"),
        keyed.http.get("/v1/models"),
        keyed.http.put("/v1/models"),
        keyed.http.get("/healthz", headers={"Host": "evil"}),
        keyed.chat("x", keyed.client),
        keyed.chat("x", keyed.client, stream=True),
        keyed.http.post("/v1/feedback", content=b"{", headers={"Content-Type": "application/json"}),
        keyed.http.post("/v1/feedback", content=b"x" * 300_000),
        keyed.http.get("/v1/state", headers=admin),
        keyed.http.get("/sign-in"),
    ]
    assert [answer.status_code for answer in answers] == [
        200,
        404,
        401,
        405,
        400,
        200,
        200,
        400,
        413,
        500,
        200,
    ]
    for answer in answers:
        assert SECURITY_HEADERS.items() <= dict(answer.headers).items(), answer.url
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_sign_in_gives_a_cookie_that_scripts_cannot_read(keyed: Keyed) -> None:
    wrong = keyed.http.post("/sign-in", data={"key": "tt-<b>wrong"})
    assert wrong.status_code == 401
    assert "<b>" not in wrong.text
    assert "set-cookie" not in wrong.headers
    right = keyed.http.post("/sign-in", data={"key": keyed.voter})
    assert right.status_code == 303
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert keyed.voter.lower() not in cookie
    keyed.http.cookies.clear()
    # the cookie is for the page: the API does not take it, so no other site's form can use it
    value = right.cookies["thumbtune_session"]
    assert keyed.http.get("/v1/votes", headers={"Cookie": f"thumbtune_session={value}"}).status_code == 401


# Bodies


def test_a_body_that_is_too_large_is_refused_before_it_is_read(keyed: Keyed) -> None:
    for path, size in (("/v1/chat/completions", 1_100_000), ("/v1/feedback", 210_000)):
        response = keyed.http.post(path, content=b"x" * size, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_a_chunked_body_that_grows_too_large_is_refused(keyed: Keyed) -> None:
    def pour() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 10_000

    response = keyed.http.post("/v1/feedback", content=pour())
    assert response.status_code == 413


def test_a_vote_at_the_limits_of_its_schema_fits(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    vote = open_house.vote(completion_id=name, kind="edit", correction="ş" * 90_000, comment="x" * 10_000)
    assert vote.status_code == 200
    too_long = open_house.vote(completion_id=name, label=True, comment="x" * 10_001)
    assert (too_long.status_code, too_long.json()["error"]["param"]) == (400, "comment")


def test_a_body_that_dribbles_is_cut_off(open_house: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.3)
    place = urlsplit(open_house.address)
    with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"com'
        )
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"slow_body" in answer


def test_a_body_whose_end_never_came_is_no_vote(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    body = json.dumps({"completion_id": name, "label": True}).encode()
    place = urlsplit(open_house.address)
    with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(body):x}\r\n".encode() + body + b"\r\n"
        )
    time.sleep(0.3)
    assert open_house.read_presses(name) == []


HOSTILE: dict[str, bytes] = {
    "no JSON": b"{",
    "empty": b"",
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "not UTF-8": b'{"comment": "\xff\xfe"}',
    "UTF-16": '{"label": true}'.encode("utf-16"),
    "deep nesting": b"[" * 100_000,
    "deep nesting, closed": b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "deep objects": b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    "NaN": b'{"completion_id": "a", "score": NaN}',
    "infinity": b'{"completion_id": "a", "score": -Infinity}',
    "a float beyond floats": b'{"completion_id": "a", "score": 1e999}',
    "an integer beyond floats": b'{"completion_id": "a", "score": 1' + b"0" * 400 + b"}",
    "an integer beyond reading": b'{"completion_id": "a", "score": 1' + b"0" * 10_000 + b"}",
    "a field twice": b'{"completion_id": "a", "label": true, "label": false}',
    "half a surrogate pair": b'{"completion_id": "a\\ud800", "label": true}',
    "half a pair as a name": b'{"completion_id": "a", "label": true, "\\udfff": 1}',
    "NUL": b'{"completion_id": "a\\u0000", "label": true}',
    "a byte order mark": b'\xef\xbb\xbf{"completion_id": "a", "label": true}',
}
AS_CHAT: dict[str, bytes] = {
    "a huge seed": b'{"messages": [{"role": "user", "content": "x"}], "seed": 1' + b"0" * 30 + b"}",
    "huge max_tokens": b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e300}',
    "NUL in a message": b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}',
    "NUL in a part": b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\u0000"}]}]}',
    "half a pair in a tool": b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"\\ud83d": 1}]}',
    "infinity in an extra": b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"1": 1e999}}',
    "a deep tool": b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"a": '
    + b"[" * 70
    + b"]" * 70
    + b"}]}",
    "a message that is a text": b'{"messages": "x"}',
    "an unknown role": b'{"messages": [{"role": "god", "content": "x"}]}',
    "too many messages": json.dumps({"messages": [{"role": "user", "content": ""}] * 1_001}).encode(),
    "an empty model": b'{"messages": [{"role": "user", "content": "x"}], "model": ""}',
}


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/chat/completions", "/v1/import", "/v1/keys"])
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_body_is_a_refusal_in_openais_shape(open_house: Served, path: str, kind: str) -> None:
    check_refusal(
        open_house.http.post(path, content=HOSTILE[kind], headers={"Content-Type": "application/json"})
    )


@pytest.mark.parametrize("kind", list(AS_CHAT))
def test_a_hostile_chat_is_a_refusal_in_openais_shape(open_house: Served, kind: str) -> None:
    n_asked = len(open_house.engine.bodies)
    answer = open_house.http.post(
        "/v1/chat/completions", content=AS_CHAT[kind], headers={"Content-Type": "application/json"}
    )
    check_refusal(answer)
    assert len(open_house.engine.bodies) == n_asked, "it never reached the model"


def check_refusal(response: httpx.Response) -> None:
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 5 < len(error["message"]) < 300


@pytest.mark.parametrize(
    "path",
    [
        "/v1/votes?label=perhaps",
        "/v1/votes?limit=0",
        "/v1/votes?before_id=99999999999999999999999",
        "/v1/votes?reason=%00",
        "/v1/votes?model_version=a%00",
        "/v1/votes/%00/history",
        "/v1/votes?kind=%ff%fe",
        "/v1/audit?limit=1001",
    ],
)
def test_a_hostile_address_is_a_refusal_too(open_house: Served, path: str) -> None:
    check_refusal(open_house.http.get(path))


@pytest.mark.parametrize("first", ["true", "false"])
def test_a_vote_that_says_two_things_is_no_vote(open_house: Served, first: str) -> None:
    name = open_house.ask()["completion_id"]
    body = f'{{"completion_id": "{name}", "label": {first}, "label": true}}'
    headers = {"Content-Type": "application/json"}
    check_refusal(open_house.http.post("/v1/feedback", content=body.encode(), headers=headers))
    assert open_house.read_presses(name) == []


def test_a_users_own_words_are_not_said_again_in_a_refusal(open_house: Served) -> None:
    texts = [
        open_house.vote(completion_id="a", label=SENTINEL),
        open_house.vote(completion_id="a", label=True, **{SENTINEL + " with spaces": 1}),
        open_house.vote(completion_id=SENTINEL, label=True),
        open_house.vote(completion_id="a", label=True, vote_token=SENTINEL),
        open_house.chat("x", model=SENTINEL),
        open_house.http.post("/v1/chat/completions", json={"messages": [{"role": SENTINEL}]}),
        open_house.http.get("/v1/votes", params={"label": SENTINEL}),
        open_house.http.get(f"/{SENTINEL}"),
    ]
    for response in texts:
        assert response.status_code in (400, 401, 404)
        assert SENTINEL not in response.text


# Rates


def test_requests_are_limited_per_user_and_not_for_the_next_user(serve_one: Serve) -> None:
    house = serve_one(user_requests="3/day")
    key = house.make_key("client", speaks_for_users=True)
    statuses = [house.chat("x", key, headers={"Thumbtune-User": "a"}).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert house.chat("x", key, headers={"Thumbtune-User": "b"}).status_code == 200


def test_requests_are_limited_per_key_whoever_it_speaks_for(serve_one: Serve) -> None:
    house = serve_one(key_requests="3/day")
    key, other = (house.make_key("client", speaks_for_users=True) for _ in range(2))
    statuses = [house.chat("x", key, headers={"Thumbtune-User": f"u{i}"}).status_code for i in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert house.chat("x", other, headers={"Thumbtune-User": "u0"}).status_code == 200


def test_tokens_are_limited_by_what_answers_cost(serve_one: Serve) -> None:
    house = serve_one(user_tokens="100/day")
    assert house.chat("x" * 200).status_code == 200, "what it costs is known afterwards"
    refused = house.chat("x")
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_votes_are_limited_too_with_a_token_as_with_a_key(serve_one: Serve) -> None:
    house = serve_one(user_votes="2/day")
    mine = house.ask()
    press = {"completion_id": mine["completion_id"], "vote_token": mine["vote_token"]}
    statuses = [house.vote(label=label, **press).status_code for label in (True, False, True)]
    assert statuses == [200, 200, 429]
    assert len(house.read_presses(mine["completion_id"])) == 2
    assert house.chat("x").status_code == 200, "votes and chats are counted apart"
    limited = serve_one(key_votes="1/day")
    voter = limited.make_key("voter")
    client = limited.make_key("client")
    names = [limited.ask("x", client)["completion_id"] for _ in range(2)]
    answers = [limited.vote(voter, completion_id=name, label=True) for name in names]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 86_400


def test_a_limit_ends_with_its_window(monkeypatch: Any) -> None:
    from thumbtune.gateway import rates
    from thumbtune.gateway.identity import Identity

    now = [1_000_000.0]
    monkeypatch.setattr(rates.time, "time", lambda: now[0])
    limits = Rates(GatewaySettings(user_requests="2/minute"))
    user = Identity("u", "client")
    limits.take(user, "requests")
    limits.take(user, "requests")
    with pytest.raises(Problem) as caught:
        limits.take(user, "requests")
    now[0] += int(caught.value.headers["Retry-After"])
    limits.take(user, "requests")  # who comes again when told to is let in


@pytest.mark.parametrize("rate", ["many", "10", "10/fortnight", "-1/minute", ""])
def test_a_rate_that_makes_no_sense_is_named(rate: str) -> None:
    with pytest.raises(ConfigError, match="user_votes"):
        Rates(GatewaySettings(user_votes=rate))


# Logs


class FaultyEngine(ScriptedEngine):
    """Fails in its own way at each kind of message, always with the text in hand."""

    def _answer(self, body: Any) -> list[str]:
        text = body["messages"][-1]["content"]
        if "fault" in text:
            raise RuntimeError(f"cannot answer {text}")
        if "refuse" in text:
            raise Problem(502, "the model broke off", code="upstream")
        return super()._answer(body)


def test_logs_and_metrics_never_hold_a_users_text_or_a_secret(
    serve_one: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    house = serve_one(FaultyEngine())
    admin = house.make_key("admin")
    mine = house.ask(f"{SENTINEL} hello", admin)
    press = {"completion_id": mine["completion_id"], "vote_token": mine["vote_token"]}
    kept = {"comment": SENTINEL, "reason": SENTINEL, "correction": SENTINEL, "idempotency_key": SENTINEL}
    assert house.vote(label=True, **kept, **press).status_code == 200
    assert house.vote(label=SENTINEL, **press).status_code == 400
    assert house.vote(label=True, completion_id=SENTINEL, vote_token=SENTINEL).status_code == 401
    for stream in (False, True):
        assert house.chat(f"{SENTINEL} fault", admin, stream=stream).status_code == 500
        assert house.chat(f"{SENTINEL} refuse", admin, stream=stream).status_code == 502
        assert house.chat(f"{SENTINEL} a fail b", admin, stream=True).status_code == 200
    assert house.chat("x", admin, model=SENTINEL).status_code == 404
    assert house.chat("x", SENTINEL).status_code == 401
    with monkeypatch.context() as broken:
        broken.setattr(house.gateway.committer, "_commit", _fail)
        assert house.chat(f"{SENTINEL} store", admin).status_code == 503
        assert "error" in house.chat(f"{SENTINEL} store", admin, stream=True).text
        assert house.vote(label=False, comment=SENTINEL, **press).status_code == 503
    body = {"messages": [{"role": "user", "content": f"wait {SENTINEL} " + "w " * 99}], "stream": True}
    headers = {"Authorization": f"Bearer {admin}"}
    with house.http.stream("POST", "/v1/chat/completions", json=body, headers=headers):
        pass
    time.sleep(0.3)
    assert house.http.get(f"/{SENTINEL}", headers=headers).status_code == 404
    metrics = house.http.get("/metrics", headers=headers).text
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    said = "\n".join(f"{record.name} {record.getMessage()} {vars(record)}" for record in ours)
    said += "".join(str(record.exc_text) for record in ours)
    assert "a fault of the gateway" in said, "a fault is told, with its place"
    assert "test_security.py" in said
    assert "thumbtune.access" in said
    assert 'route="/v1/feedback"' in metrics
    for text in (said, metrics):
        assert SENTINEL not in text
        assert admin not in text
        assert mine["vote_token"] not in text
        assert not any(secret in text for secret in house.gateway.doorkeeper.secrets.signing_secrets)


def _fail(*_: Any) -> None:
    raise StoreError("votes.db: database or disk is full")


def test_a_gateway_whose_keys_cannot_be_read_keeps_the_known_ones(serve_one: Serve, monkeypatch: Any) -> None:
    house = serve_one()
    key = house.make_key("client")
    monkeypatch.setattr(house.gateway.doorkeeper.keys, "_read", _fail)
    time.sleep(1.2)
    assert house.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    unknown = house.http.get("/v1/models", headers={"Authorization": "Bearer tt-unknown"})
    assert unknown.status_code in (401, 503)


def test_many_strangers_do_not_make_the_store_busy(keyed: Keyed, monkeypatch: Any) -> None:
    n_reads = 0
    read = keyed.gateway.doorkeeper.keys._read

    def count() -> None:
        nonlocal n_reads
        n_reads += 1
        read()

    monkeypatch.setattr(keyed.gateway.doorkeeper.keys, "_read", count)
    started = time.monotonic()

    async def knock() -> None:
        async with httpx.AsyncClient(base_url=keyed.address) as client:
            for number in range(60):
                answer = await client.get("/v1/models", headers={"Authorization": f"Bearer tt-{number}"})
                assert answer.status_code == 401

    asyncio.run(knock())
    assert n_reads <= 3 + 3 * (time.monotonic() - started)
