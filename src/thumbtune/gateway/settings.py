"""What the gateway can be told: by option, by `THUMBTUNE_…` in the environment, or in a TOML file, in this order."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from thumbtune.errors import ConfigError
from thumbtune.store.database import read_url

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class GatewaySettings(BaseSettings):
    """Fields are documented by their description; `docs/reference/gateway-settings.md` is made from them."""

    model_config = SettingsConfigDict(env_prefix="THUMBTUNE_", extra="forbid")

    model: str | None = Field(
        None, description="Model to serve: folder, hub name or packaged:smollm2-135m-instruct."
    )
    adapters: list[Path] = Field(
        default_factory=list, description="PEFT adapter folders to serve beside the model."
    )
    upstream: str | None = Field(
        None, description="OpenAI-compatible server to pass chats to, such as vLLM's /v1."
    )
    upstream_key: str | None = Field(
        None, description="API key for the upstream; better by environment than by option."
    )
    upstream_timeout_seconds: float = Field(120.0, gt=0, description="Longest silence of the upstream.")
    store: str = Field("thumbtune.db", description="SQLite file or postgresql:// address of the votes.")
    secrets: Path | None = Field(
        None, description="File of signing secrets; beside a SQLite store by default."
    )
    host: str = Field("127.0.0.1", description="Address to bind to; other than loopback needs API keys.")
    port: int = Field(8400, ge=0, le=65535, description="Port to bind to; 0 takes a free one.")
    allowed_hosts: list[str] = Field(default_factory=list, description="Host names that requests may name.")
    allowed_origins: list[str] = Field(
        default_factory=list, description="Web origins that may vote from a browser."
    )
    page: bool = Field(True, description="Serve the page at /page.")
    vote_token_days: float = Field(7.0, gt=0, description="How long a vote token is good for.")
    session_hours: float = Field(12.0, gt=0, description="How long a sign-in on the page lasts.")
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="Largest body of a chat or an import.")
    max_vote_bytes: int = Field(200_000, ge=1_000, description="Largest body of a vote.")
    user_requests: str = Field("60/minute", description="Chats of one user.")
    user_tokens: str = Field("60000/minute", description="Tokens of one user, prompts and completions.")
    user_votes: str = Field("120/minute", description="Votes of one user.")
    key_requests: str = Field("6000/minute", description="Chats by one API key.")
    key_tokens: str = Field("6000000/minute", description="Tokens by one API key.")
    key_votes: str = Field("120000/minute", description="Votes by one API key.")
    race_seconds: float = Field(
        2.0, ge=0, description="How long a vote waits for its completion to be stored."
    )
    max_rows: int = Field(32, ge=1, description="Answers that the local model decodes together.")
    max_waiting: int = Field(
        256, ge=0, description="Chats that may wait for the local model; more get a 503."
    )
    max_new_tokens: int = Field(
        512, ge=1, description="Most tokens of an answer where the request does not say."
    )
    drain_seconds: float = Field(30.0, ge=0, description="How long answers in flight may take when stopping.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = settings_cls.model_config.get("toml_file")
        sources = (init_settings, env_settings)
        return sources if file is None else (*sources, TomlConfigSettingsSource(settings_cls))

    @property
    def on_loopback(self) -> bool:
        """True where only this machine can reach the gateway."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_private(self) -> bool:
        """True where nobody else is let in either: a proxy that names another host brings strangers to loopback."""
        return self.on_loopback and all(name in (*LOOPBACK_NAMES, self.host) for name in self.allowed_hosts)

    @property
    def secrets_file(self) -> Path:
        """Where the secrets are: beside a SQLite store, else in the user's configuration folder."""
        if self.secrets is not None:
            return self.secrets
        url = read_url(self.store)
        if url.get_backend_name() == "sqlite":
            return Path(str(url.database)).with_suffix(".secrets.json")
        return Path("~/.config/thumbtune/secrets.json").expanduser()


def read_gateway_settings(config: Path | None = None, **given: Any) -> GatewaySettings:
    """Settings from options (those that are not None), environment and file. Raises `ConfigError`."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if config is not None and not config.is_file():
        raise ConfigError(f"{config}: there is no such file")
    source = GatewaySettings if config is None else _reading_from(config)
    try:
        return source(**chosen)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"gateway setting '{place}': {first['msg']}") from error
    except ValueError as error:
        raise ConfigError(f"gateway settings: {error}") from error


def _reading_from(config: Path) -> type[GatewaySettings]:
    class FromFile(GatewaySettings):
        model_config = SettingsConfigDict(env_prefix="THUMBTUNE_", extra="forbid", toml_file=config)

    return FromFile
