"""What /openapi.json says is what the gateway does: schemathesis tries each operation, with sense and without."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.conftest import Serve
from gateway.house import ROLES, Served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
WITH_INPUT = [
    "/v1/chat/completions",
    "/v1/feedback",
    "/v1/import",
    "/v1/votes",
    "/v1/champion",
    "/v1/canary/end",
    "/v1/canaries",
    "/v1/cycles",
    "/v1/adapters",
    "/v1/users/{user}",
    "/v1/keys",
    "/v1/audit",
]
"""Where something can be wrong: a body, or a parameter that is more than a text."""

SELDOM = {
    "/v1/feedback": 404,
    "/v1/champion": 409,
    "/v1/champion/back": 409,
    "/v1/canary/end": 409,
    "/v1/adapters": 400,
    "/v1/keys/{key_id}": 404,
}
"""What made-up names of completions, versions, folders and keys are answered."""


@pytest.fixture(scope="module")
def house(serve_one: Serve) -> Served:
    """With keys, and so quick to give up on a racing completion that a made-up one costs nothing."""
    return serve_one(race_seconds=0.0)


@pytest.fixture(scope="module")
def admin(house: Served) -> str:
    return house.make_key("admin", speaks_for_users=True)


@pytest.fixture(scope="module")
def document(house: Served, admin: str) -> Any:
    config = SchemathesisConfig.from_dict({"generation": {"with-security-parameters": False}})
    return schemathesis.openapi.from_url(f"{house.address}/openapi.json", config=config)


@pytest.fixture(scope="module")
def session() -> Any:
    with requests.Session() as made:
        yield made


def try_all(operation: Any, mode: GenerationMode, n: int, **how: Any) -> list[int]:
    """The statuses of some calls, each of which was checked against the document."""
    statuses = []

    @settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        statuses.append(case.call_and_validate(checks=CHECKS, **how).status_code)

    call()
    return statuses


@pytest.mark.parametrize(("method", "path"), list(ROLES))
def test_sense_is_answered_as_the_document_says(
    document: Any, session: Any, admin: str, method: str, path: str
) -> None:
    headers = {"Authorization": f"Bearer {admin}"}
    statuses = try_all(document[path][method], GenerationMode.POSITIVE, 20, session=session, headers=headers)
    assert SELDOM.get(path, 200) in statuses or 204 in statuses
    assert not {401, 403} & set(statuses) or path == "/v1/feedback", "an admin may do it"


def test_a_stream_is_what_the_document_says(document: Any, session: Any, admin: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    case = document["/v1/chat/completions"]["POST"].Case(body=body, media_type="application/json")
    headers = {"Authorization": f"Bearer {admin}"}
    answer = case.call_and_validate(checks=CHECKS, session=session, headers=headers)
    assert answer.headers["content-type"][0].startswith("text/event-stream")


@pytest.mark.parametrize("path", WITH_INPUT)
def test_nonsense_is_refused_as_the_document_says(document: Any, session: Any, admin: str, path: str) -> None:
    method = next(
        method for method, known in ROLES if known == path and (method, known) != ("GET", "/v1/keys")
    )
    headers = {"Authorization": f"Bearer {admin}"}
    statuses = try_all(document[path][method], GenerationMode.NEGATIVE, 20, session=session, headers=headers)
    # nonsense in an address is a name that nobody has; only a body or a query can be nonsense for sure
    assert 400 in statuses or path == "/v1/users/{user}"


@pytest.mark.parametrize(("method", "path"), list(ROLES))
def test_a_stranger_gets_what_the_document_says(document: Any, session: Any, method: str, path: str) -> None:
    statuses = try_all(document[path][method], GenerationMode.POSITIVE, 4, session=session)
    if path not in ("/healthz", "/readyz"):
        assert set(statuses) <= {400, 401}
