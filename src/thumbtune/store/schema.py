"""The tables. What a row means stands here; how the tables came to be stands in `migrations/`.

Votes are presses, appended and never changed: the current vote of a user on a completion is the newest press of its
kind (`votes.id` grows). So history needs no second table and a retraction is a press with `label` null.

Times are whole microseconds since 1970, UTC (`_us`): equal on every database, exact in Parquet.
Users are keys, never names: `user_key` is an HMAC of who it was (`thumbtune.store.secrets`).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

GrowingId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only where the key is INTEGER."""

Nullable = JSON(none_as_null=True)
"""JSON whose None is SQL's NULL, not the word null."""

ERASED_USER = "erased"
"""The user key of completions whose user asked to be forgotten."""

completions = Table(
    "completions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("user_key", String(64), nullable=False, doc="Who asked."),
    Column("api_key_id", String(32), doc="The API key that asked; null for the page and for imports."),
    Column("conversation_key", String(64), nullable=False, doc="Equal for the turns of one conversation."),
    Column("messages", Nullable, doc="The prompt as it was sent: chat messages. Null once erased."),
    Column("tools", Nullable),
    Column("completion", Nullable, doc="The assistant's message as it was served. Null once erased."),
    Column(
        "finish_reason",
        String(32),
        nullable=False,
        doc="As OpenAI names it; or cancelled: the client left; error: the model broke off.",
    ),
    Column("model_version", String(160), nullable=False),
    Column(
        "arm", String(16), nullable=False, doc="champion, canary, or named: the client chose the version."
    ),
    Column("sampling", JSON, nullable=False),
    Column("n_prompt_tokens", Integer),
    Column("n_completion_tokens", Integer),
    Column("created_us", BigInteger, nullable=False),
    Column("source", String(64), nullable=False, doc="'gateway', or the product that it was imported from."),
    Column("source_id", String(200), doc="Its name over there."),
    Column("erased_us", BigInteger),
    Index(None, "user_key", "created_us"),
    Index(None, "model_version", "created_us"),
    Index(None, "created_us"),
    Index("uq_completions_source_source_id", "source", "source_id", unique=True),
)

votes = Table(
    "votes",
    metadata,
    Column("id", GrowingId, primary_key=True, autoincrement=True),
    Column("completion_id", String(64), ForeignKey("completions.id"), nullable=False),
    Column("user_key", String(64), nullable=False, doc="Who pressed."),
    Column("api_key_id", String(32)),
    Column("kind", String(16), nullable=False, doc="explicit, or implicit: edit, retry, copy."),
    Column("label", Boolean, doc="True = 👍, False = 👎, null = taken back."),
    Column("score", Float, doc="The number that the label was made from, where one was sent."),
    Column(
        "strength", Float, nullable=False, doc="In (0, 1]: how much the press says; 1 for an explicit one."
    ),
    Column("reason", String(64)),
    Column("comment", Text),
    Column("correction", Text, doc="The answer as the voter would have it."),
    Column("idempotency_key", String(128)),
    Column("source", String(64), nullable=False),
    Column("source_id", String(200)),
    Column("created_us", BigInteger, nullable=False),
    Index(None, "completion_id", "user_key", "kind", "id"),
    Index(None, "user_key"),
    Index(None, "created_us"),
    Index("uq_votes_idempotency_key_user_key", "idempotency_key", "user_key", unique=True),
    Index("uq_votes_source_source_id", "source", "source_id", unique=True),
    sqlite_autoincrement=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("role", String(16), nullable=False, doc="client, voter or admin."),
    Column(
        "secret_hash",
        String(64),
        nullable=False,
        unique=True,
        doc="SHA-256 of the key, which has 256 random bits.",
    ),
    Column("speaks_for_users", Boolean, nullable=False, doc="True: may name its end user in a header."),
    Column("created_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger),
)

audit = Table(
    "audit",
    metadata,
    Column("id", GrowingId, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", String(64), nullable=False, doc="API key id, or 'command line', or 'loopback'."),
    Column("act", String(64), nullable=False),
    Column("details", JSON, nullable=False, doc="Names and counts; never a user's text."),
    sqlite_autoincrement=True,
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("version", String(160), primary_key=True, doc="Content-addressed: equal names, equal weights."),
    Column("kind", String(16), nullable=False, doc="base, adapter or upstream."),
    Column("location", Text, nullable=False, doc="Folder, hub name or upstream model."),
    Column("parent", String(160)),
    Column("snapshot", String(64), doc="Digest of the snapshot that it learned from."),
    Column("config", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

pointers = Table(
    "pointers",
    metadata,
    Column("name", String(32), primary_key=True, doc="champion"),
    Column("version", String(160), ForeignKey("model_versions.version"), nullable=False),
    Column("previous", String(160), doc="What it pointed to before: the way back."),
    Column("changed_us", BigInteger, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("path", Text, nullable=False),
    Column("n_rows", Integer, nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

snapshot_completions = Table(
    "snapshot_completions",
    metadata,
    Column("digest", String(64), ForeignKey("snapshots.digest"), primary_key=True),
    Column("completion_id", String(64), primary_key=True),
    Index(None, "completion_id"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("id", GrowingId, primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    Column("user_key", String(64), nullable=False),
    Column("n_completions", Integer, nullable=False),
    Column("n_votes", Integer, nullable=False),
    Column("snapshots", JSON, nullable=False, doc="Digests of the snapshots that held text of this user."),
    Column("versions", JSON, nullable=False, doc="Model versions that learned from them."),
    sqlite_autoincrement=True,
)

canaries = Table(
    "canaries",
    metadata,
    Column(
        "id", String(32), primary_key=True, doc="Also what users are hashed with: a new canary, other users."
    ),
    Column("candidate", String(160), ForeignKey("model_versions.version"), nullable=False),
    Column("champion", String(160), ForeignKey("model_versions.version"), nullable=False),
    Column(
        "state", String(16), nullable=False, doc="running, promoted, rolled_back, inconclusive, withdrawn."
    ),
    Column("stages", JSON, nullable=False, doc="[[share of users, since_us], ...], oldest first."),
    Column("rules", JSON, nullable=False, doc="What it is judged by, as of its start."),
    Column(
        "history", JSON, nullable=False, doc="[up-votes, votes] of the champion before it: its usual up-rate."
    ),
    Column(
        "record", Nullable, doc="The decision, its reasons, and the numbers that it can be replayed from."
    ),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Index(
        "uq_canaries_running",
        "state",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
)

cycles = Table(
    "cycles",
    metadata,
    Column("id", GrowingId, primary_key=True, autoincrement=True),
    Column("state", String(16), nullable=False, doc="running, done or failed."),
    Column("outcome", Text, doc="How it ended, in words."),
    Column("settings", JSON, nullable=False),
    Column("folder", Text, nullable=False, doc="What it wrote: snapshot, run, measurements."),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    sqlite_autoincrement=True,
)

cycle_steps = Table(
    "cycle_steps",
    metadata,
    Column("cycle_id", GrowingId, ForeignKey("cycles.id"), primary_key=True, autoincrement=False),
    Column("step", String(32), primary_key=True),
    Column("result", JSON, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
)

locks = Table(
    "locks",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(200), nullable=False, doc="host:pid:start of the process."),
    Column("renewed_us", BigInteger, nullable=False),
)
