"""The secrets of one installation, in a file that only its owner can read, apart from the store.

A copy of the database alone then neither forges a vote token nor tells who a `user_key` is. The user secret never
changes, or people would become strangers to their own votes; signing secrets rotate: the newest signs, all verify.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thumbtune.errors import ConfigError

MAX_SIGNING_SECRETS = 3
"""Older ones are forgotten at a rotation, and their tokens with them."""


@dataclass(frozen=True)
class Secrets:
    """What must not leave this machine."""

    user_secret: str
    signing_secrets: Sequence[str]
    """Oldest first; the last one signs."""

    def user_key(self, kind: str, name: str) -> str:
        """The key of a user: an HMAC of `name` within `kind` (a product, an API key), 32 hex digits."""
        message = json.dumps([kind, name]).encode()
        return hmac.new(self.user_secret.encode(), message, hashlib.sha256).hexdigest()[:32]


def open_secrets(path: Path) -> Secrets:
    """The secrets in `path`; made there on first use, readable by the owner alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            made = Secrets(secrets.token_hex(32), [secrets.token_hex(32)])
            file.write(_dump(made))
            return made
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"{path}: the secrets cannot be written: {error.strerror}") from error


def rotate_signing_secret(path: Path) -> int:
    """Sign with a fresh secret from now on; gives how many are still honoured. Serving processes must restart."""
    old = open_secrets(path)
    kept = [*old.signing_secrets, secrets.token_hex(32)][-MAX_SIGNING_SECRETS:]
    staging = path.with_suffix(".new")
    with open(os.open(staging, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
        file.write(_dump(Secrets(old.user_secret, kept)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)
    return len(kept)


def _dump(value: Secrets) -> str:
    return json.dumps(
        {"user_secret": value.user_secret, "signing_secrets": list(value.signing_secrets)}, indent=1
    )


def _read(path: Path) -> Secrets:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others can read these secrets: chmod 600 it")
        content = json.loads(path.read_text())
        found = Secrets(content["user_secret"], content["signing_secrets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: these secrets cannot be read: restore the file from a back-up") from error
    if not found.user_secret or not found.signing_secrets:
        raise ConfigError(f"{path}: a secret is empty: restore the file from a back-up")
    return found
