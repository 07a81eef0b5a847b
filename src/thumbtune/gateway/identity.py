"""Who is asking: from an API key, a vote token or a session, and never from a body.

A product's server has one key for many users; a key that was made with `speaks_for_users` may name the end user in
the header `Thumbtune-User`. Such a name is hashed with the key's id: two products cannot meet in one user.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from thumbtune.gateway.problems import Problem
from thumbtune.store.database import Store
from thumbtune.store.keys import ApiKey, Role, find_keys_by_hash, hash_secret, list_keys
from thumbtune.store.secrets import Secrets

USER_HEADER = "Thumbtune-User"
REFRESH_SECONDS = 0.5
"""How often keys, champion and canary are read anew: what another process changed is known here within a second."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who it is, and what they may do."""

    user_key: str
    role: Role
    key_id: str | None = None
    actor: str = "loopback"
    """For the audit trail."""

    def require(self, *roles: Role) -> None:
        """Raises a 403 `Problem` unless the role is an admin's or one of `roles`."""
        if self.role != "admin" and self.role not in roles:
            wanted = " or ".join((*roles, "admin"))
            raise Problem(403, f"this needs a key of role {wanted}; yours is {self.role}", code="wrong_role")


class KeyRing:
    """The API keys in use, kept in memory and read anew twice a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read_at = time.monotonic()
        self._lock = asyncio.Lock()
        self._read()

    @property
    def is_empty(self) -> bool:
        """True while no key was ever made: whoever revokes the last one wants it shut, not open to all."""
        return self._is_new

    def _read(self) -> None:
        self._keys = find_keys_by_hash(self._store)
        self._is_new = not self._keys and not list_keys(self._store)

    def find(self, secret: str) -> ApiKey | None:
        return self._keys.get(hash_secret(secret))

    def get(self, key_id: str) -> ApiKey | None:
        """A key in use by its id."""
        return next((key for key in self._keys.values() if key.id == key_id), None)

    async def refresh(self, *, at_most_every_seconds: float = 0.0) -> None:
        """Read the keys again; where the store is out, the known ones stay good."""
        async with self._lock:
            if time.monotonic() - self._read_at < at_most_every_seconds:
                return
            self._read_at = time.monotonic()
            await asyncio.to_thread(self._read)


class Tokens:
    """Signed strings that the gateway hands out and reads again: the newest secret signs, all of them verify."""

    def __init__(
        self, secrets: Secrets, purpose: Literal["vote", "session"], lifetime_seconds: float
    ) -> None:
        self._signer = URLSafeTimedSerializer(
            list(secrets.signing_secrets),
            salt=f"thumbtune.{purpose}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": _sha256},
        )
        self._purpose = purpose
        self.lifetime_seconds = round(lifetime_seconds)

    def sign(self, *content: str) -> str:
        """A token that says `content`, from now."""
        token = self._signer.dumps(content)
        return token if isinstance(token, str) else token.decode()

    def read(self, token: str) -> Sequence[str]:
        """What a token says. Raises a 401 `Problem` for one that is forged, broken or too old."""
        try:
            content: list[str] = self._signer.loads(token, max_age=self.lifetime_seconds)
        except SignatureExpired:
            raise Problem(401, f"the {self._purpose} token has expired", code="token_expired") from None
        except BadSignature:
            raise Problem(
                401, f"the {self._purpose} token is not one of ours", code="token_invalid"
            ) from None
        return content


class Doorkeeper:
    """Turns what a request carries into an `Identity`, or refuses it."""

    def __init__(
        self, store: Store, secrets: Secrets, *, is_private: bool, vote_days: float, session_hours: float
    ):
        self.keys = KeyRing(store)
        self.secrets = secrets
        self.is_private = is_private
        self.vote_tokens = Tokens(secrets, "vote", round(vote_days * 86_400))
        self.sessions = Tokens(secrets, "session", round(session_hours * 3_600))

    @property
    def is_open(self) -> bool:
        """True on loopback while no key was ever made: the one person at this machine may do everything."""
        return self.is_private and self.keys.is_empty

    @property
    def local_identity(self) -> Identity:
        return Identity(self.secrets.user_key("loopback", "local"), "admin")

    async def identify(self, authorization: str | None, user: str | None) -> Identity:
        """Who sends a request with these headers. Raises a 401 or 403 `Problem`."""
        if authorization is None or (self.is_open and not authorization.startswith("Bearer tt-")):
            if not self.is_open:
                raise Problem(
                    401, "an API key is needed: Authorization: Bearer tt-…", code="no_key", headers=_ASK
                )
            if user is not None:
                raise _no_speaker()
            return self.local_identity
        scheme, _, secret = authorization.partition(" ")
        key = self.keys.find(secret) if scheme.lower() == "bearer" else None
        if key is None:
            await self.keys.refresh(at_most_every_seconds=0.5)
            key = self.keys.find(secret) if scheme.lower() == "bearer" else None
        if key is None:
            raise Problem(
                401, "this API key is not known, or was revoked", code="invalid_api_key", headers=_ASK
            )
        return self.as_identity(key, user)

    def as_identity(self, key: ApiKey, user: str | None = None) -> Identity:
        """A key's own identity, or that of the end user that it names."""
        if user is None:
            return Identity(self.secrets.user_key("key", key.id), key.role, key.id, key.id)
        if not key.speaks_for_users:
            raise _no_speaker()
        if not 1 <= len(user) <= 200:
            raise Problem(400, f"{USER_HEADER} has 1 to 200 characters", code="bad_user")
        return Identity(self.secrets.user_key(f"user of {key.id}", user), key.role, key.id, key.id)

    def identify_voter(self, token: str, completion_id: str) -> Identity:
        """Who holds a vote token for this completion. Raises a 401 or 403 `Problem`."""
        content = self.vote_tokens.read(token)
        if content[0] != completion_id:
            raise Problem(
                403, "this vote token is for another completion", code="token_mismatch", param="vote_token"
            )
        return Identity(content[1], "client", None, "vote token")

    def identify_session(self, session: str) -> Identity | None:
        """Who signed in on the page with this cookie; None where nobody did, or the key was revoked since."""
        try:
            (key_id,) = self.sessions.read(session)
        except (Problem, ValueError):
            return None
        key = self.keys.get(key_id)
        return None if key is None else self.as_identity(key)


def _no_speaker() -> Problem:
    return Problem(
        403,
        f"{USER_HEADER} is only heard from a key that speaks for users: `thumbtune keys create --speaks-for-users`",
        code="may_not_speak_for_users",
    )


def _sha256(data: bytes = b"") -> object:
    import hashlib

    return hashlib.sha256(data)


_ASK = {"WWW-Authenticate": "Bearer"}
