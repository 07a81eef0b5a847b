"""The first tables: completions, votes, keys, audit, model versions, snapshots, erasures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("speaks_for_users", sa.Boolean(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_api_keys_secret_hash")),
    )
    op.create_table(
        "audit",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("act", sa.String(length=64), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "completions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_key", sa.String(length=64), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=True),
        sa.Column("conversation_key", sa.String(length=64), nullable=False),
        sa.Column("messages", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("tools", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("completion", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("finish_reason", sa.String(length=32), nullable=False),
        sa.Column("model_version", sa.String(length=160), nullable=False),
        sa.Column("arm", sa.String(length=16), nullable=False),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("n_prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("n_completion_tokens", sa.Integer(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("source_id", sa.String(length=200), nullable=True),
        sa.Column("erased_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_completions")),
    )
    op.create_index(op.f("ix_completions_created_us"), "completions", ["created_us"], unique=False)
    op.create_index(
        op.f("ix_completions_model_version_created_us"),
        "completions",
        ["model_version", "created_us"],
        unique=False,
    )
    op.create_index(
        op.f("ix_completions_user_key_created_us"), "completions", ["user_key", "created_us"], unique=False
    )
    op.create_index("uq_completions_source_source_id", "completions", ["source", "source_id"], unique=True)
    op.create_table(
        "erasures",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("user_key", sa.String(length=64), nullable=False),
        sa.Column("n_completions", sa.Integer(), nullable=False),
        sa.Column("n_votes", sa.Integer(), nullable=False),
        sa.Column("snapshots", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "model_versions",
        sa.Column("version", sa.String(length=160), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("parent", sa.String(length=160), nullable=True),
        sa.Column("snapshot", sa.String(length=64), nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_model_versions")),
    )
    op.create_table(
        "snapshots",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("n_rows", sa.Integer(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_snapshots")),
    )
    op.create_table(
        "pointers",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("version", sa.String(length=160), nullable=False),
        sa.Column("previous", sa.String(length=160), nullable=True),
        sa.Column("changed_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version"], ["model_versions.version"], name=op.f("fk_pointers_version_model_versions")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pointers")),
    )
    op.create_table(
        "snapshot_completions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("completion_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["snapshots.digest"], name=op.f("fk_snapshot_completions_digest_snapshots")
        ),
        sa.PrimaryKeyConstraint("digest", "completion_id", name=op.f("pk_snapshot_completions")),
    )
    op.create_index(
        op.f("ix_snapshot_completions_completion_id"), "snapshot_completions", ["completion_id"], unique=False
    )
    op.create_table(
        "votes",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("completion_id", sa.String(length=64), nullable=False),
        sa.Column("user_key", sa.String(length=64), nullable=False),
        sa.Column("api_key_id", sa.String(length=32), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("label", sa.Boolean(), nullable=True),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("strength", sa.Float(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("correction", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.String(length=128), nullable=True),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("source_id", sa.String(length=200), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completions.id"], name=op.f("fk_votes_completion_id_completions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_votes")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_votes_completion_id_user_key_kind_id"),
        "votes",
        ["completion_id", "user_key", "kind", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_votes_created_us"), "votes", ["created_us"], unique=False)
    op.create_index(op.f("ix_votes_user_key"), "votes", ["user_key"], unique=False)
    op.create_index("uq_votes_source_source_id", "votes", ["source", "source_id"], unique=True)
    op.create_index(
        "uq_votes_idempotency_key_user_key", "votes", ["idempotency_key", "user_key"], unique=True
    )
