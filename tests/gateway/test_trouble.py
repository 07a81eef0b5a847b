"""A full disk, a store that may not be written, a database that goes away: told clearly, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from gateway.house import Served
from thumbtune.store.reading import list_votes


class Weather:
    """A setting of every connection or transaction that is begun: the database then fails as it would for real."""

    def __init__(self, engine: Engine) -> None:
        self.setting = ""
        if engine.dialect.name == "sqlite":
            event.listen(engine, "checkout", lambda connection, *_: self._run(connection.execute))
        else:
            event.listen(engine, "begin", lambda connection: self._run(connection.exec_driver_sql))

    def _run(self, execute: Callable[[str], Any]) -> None:
        if self.setting:
            execute(self.setting).close()


READ_ONLY = ("PRAGMA query_only=ON", "PRAGMA query_only=OFF")


@pytest.mark.parametrize(
    ("during", "after"),
    [("PRAGMA max_page_count=1", "PRAGMA max_page_count=1000000"), READ_ONLY],
    ids=["a full disk", "a read-only database"],
)
def test_a_vote_that_cannot_be_stored_is_a_503_and_can_be_sent_again(
    serve_one: Callable[..., Served], during: str, after: str
) -> None:
    house = serve_one(user_tokens="1000000000/minute")
    if not house.gateway.store.is_sqlite:
        if (during, after) != READ_ONLY:
            pytest.skip("PostgreSQL's disk cannot be filled by a setting")
        during, after = (f"SET transaction_read_only = {state}" for state in ("on", "off"))
    weather = Weather(house.gateway.store.engine)
    answer = house.ask("a question " * 200)
    press = {"completion_id": answer["completion_id"], "vote_token": answer["vote_token"], "label": False}
    large = press | {"idempotency_key": "one", "comment": "why " * 2_000}
    assert house.vote(**press | {"idempotency_key": "zero"}).json()["status"] == "recorded"

    weather.setting = during
    refused = house.vote(**large)
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]
    assert refused.json()["error"]["code"] == "store_unavailable"
    assert "nothing of this request was stored" in refused.json()["error"]["message"]
    assert house.chat("another question " * 5_000).status_code == 503, "an answer nobody could vote on"
    assert house.http.get("/healthz").status_code == 200

    weather.setting = after
    assert house.vote(**large).json()["status"] == "changed"
    assert house.vote(**large).json()["status"] == "repeated"
    (vote,) = list_votes(house.gateway.store)
    assert vote["comment"] == large["comment"]
    assert house.chat("a third question").status_code == 200
    assert house.http.get("/readyz").status_code == 200


def test_a_database_that_goes_away_and_comes_back_costs_no_restart(
    tmp_path: Any, make_postgres_database: Callable[[], str]
) -> None:
    import httpx

    from gateway.scripted import build_gateway, serve_gateway

    url = make_postgres_database()
    gateway = build_gateway(url, tmp_path)
    with serve_gateway(gateway) as address, httpx.Client(base_url=address, timeout=20) as http:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        info = http.post("/v1/chat/completions", json=body).json()["thumbtune"]
        press = {"completion_id": info["completion_id"], "vote_token": info["vote_token"], "label": True}
        name = url.rsplit("/", 1)[1]
        cut = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
        )
        with gateway.store.engine.connect() as connection:
            connection.execute(cut, {"name": name})
        statuses = [http.post("/v1/feedback", json=press).status_code for _ in range(3)]
        assert statuses[-1] == 200
        assert set(statuses) <= {200, 503}
        assert http.get("/readyz").status_code == 200
        assert len(list_votes(gateway.store)) == 1
