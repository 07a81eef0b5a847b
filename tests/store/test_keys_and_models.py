"""API keys, the audit trail, model versions, the pointer to the champion, and the secrets file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import select

from thumbtune.errors import ConfigError
from thumbtune.store.database import Store
from thumbtune.store.keys import create_key, find_keys_by_hash, hash_secret, list_audit, list_keys, revoke_key
from thumbtune.store.models import (
    ModelVersion,
    find_pointer,
    list_versions,
    point,
    point_back,
    register_version,
)
from thumbtune.store.schema import api_keys
from thumbtune.store.secrets import MAX_SIGNING_SECRETS, Secrets, open_secrets, rotate_signing_secret


def test_a_key_is_shown_once_and_kept_as_a_hash(store: Store) -> None:
    key, secret = create_key(store, "shop", "client", speaks_for_users=True)
    assert secret.startswith("tt-")
    assert len(secret) > 40
    with store.read() as connection:
        row = connection.execute(select(api_keys)).one()
    assert secret not in map(str, row)
    assert row.secret_hash == hash_secret(secret)
    assert find_keys_by_hash(store)[hash_secret(secret)] == key
    assert list_keys(store) == [key]


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(store: Store) -> None:
    key, _ = create_key(store, "shop", "client")
    revoke_key(store, key.id, actor="an admin")
    assert find_keys_by_hash(store) == {}
    assert list_keys(store)[0].revoked_us is not None
    with pytest.raises(ConfigError, match="no key"):
        revoke_key(store, key.id)
    assert [(row["act"], row["actor"]) for row in list_audit(store)] == [
        ("revoke key", "an admin"),
        ("create key", "command line"),
    ]


@pytest.mark.parametrize(("name", "role"), [("", "client"), ("x" * 101, "client"), ("shop", "owner")])
def test_a_key_without_a_name_or_with_an_unknown_role_is_refused(store: Store, name: str, role: str) -> None:
    with pytest.raises(ConfigError):
        create_key(store, name, role)  # type: ignore[arg-type]
    assert list_keys(store) == []


def test_the_champion_is_a_pointer_with_a_way_back(store: Store) -> None:
    for name in ("base-1", "adapter-2", "adapter-3"):
        register_version(store, ModelVersion(name, "adapter", "somewhere", parent="base-1", snapshot="d1"))
    assert find_pointer(store) is None
    with pytest.raises(ConfigError, match="no earlier champion"):
        point_back(store, actor="a")
    assert point(store, "base-1", actor="a").previous is None
    assert point(store, "adapter-2", actor="a").previous == "base-1"
    assert point(store, "adapter-2", actor="a").previous == "base-1", (
        "pointing at what stands changes nothing"
    )
    assert point_back(store, actor="a").version == "base-1"
    pointer = find_pointer(store)
    assert pointer is not None
    assert (pointer.version, pointer.previous) == ("base-1", "adapter-2")
    acts = [(row["details"]["from"], row["details"]["to"]) for row in list_audit(store)]
    assert acts == [("adapter-2", "base-1"), ("base-1", "adapter-2"), (None, "base-1")]


def test_a_version_is_registered_once_and_only_known_ones_are_pointed_at(store: Store) -> None:
    register_version(store, ModelVersion("base-1", "base", "here", metrics={"up_rate": 0.5}))
    register_version(store, ModelVersion("base-1", "base", "elsewhere"))
    (version,) = list_versions(store)
    assert (version.location, version.metrics) == ("here", {"up_rate": 0.5})
    assert version.created_us > 0
    with pytest.raises(ConfigError, match="no model version 'typo'"):
        point(store, "typo", actor="a")


def test_secrets_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secrets.json"
    made = open_secrets(path)
    assert open_secrets(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_secrets(path)


def test_a_rotation_signs_anew_keeps_users_and_forgets_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    first = open_secrets(path)
    for _ in range(MAX_SIGNING_SECRETS):
        rotate_signing_secret(path)
    now = open_secrets(path)
    assert now.user_secret == first.user_secret
    assert len(now.signing_secrets) == MAX_SIGNING_SECRETS
    assert first.signing_secrets[0] not in now.signing_secrets
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"user_secret": "", "signing_secrets": ["x"]}', "\xff"])
def test_broken_secrets_are_refused_and_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="back-up"):
        open_secrets(path)
    assert path.read_text() == content


def test_a_users_key_depends_on_the_secret_the_product_and_the_name() -> None:
    secrets = Secrets("one", ["s"])
    keys = {
        secrets.user_key("shop", "42"),
        secrets.user_key("shop", "43"),
        secrets.user_key("forum", "42"),
        Secrets("two", ["s"]).user_key("shop", "42"),
        secrets.user_key("shop 4", "2"),
    }
    assert len(keys) == 5
    assert secrets.user_key("shop", "42") == secrets.user_key("shop", "42")
