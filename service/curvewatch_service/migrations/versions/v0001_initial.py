"""Make the tables of runs, attempts, epochs, events, tokens and sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from curvewatch_service.tables import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    _make_runs()
    _make_what_runs_tell()
    _make_sign_in()


def _make_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("code_hash", sa.String(), nullable=False),
        sa.Column("ingest_token_hash", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("finished_at", UtcDateTime()),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("submission", sa.BigInteger(), nullable=False),
        sa.Column("control", sa.String(), nullable=False),
        sa.Column("world_size", sa.BigInteger()),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String()),
        sa.Column("outcome_at", UtcDateTime()),
        sa.Column("outcome_reason", sa.Text(), nullable=False),
        sa.Column("traceback", sa.Text()),
        sa.Column("checkpoint", sa.Text()),
        sa.Column("best_checkpoint", sa.Text()),
        sa.Column("diagnosis", sa.JSON()),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_index(None, "runs", ["created_at"])
    op.create_index(None, "runs", ["state", "created_at"])


def _make_what_runs_tell() -> None:
    op.create_table(
        "attempts",
        _run_id(primary_key=True),
        sa.Column("attempt", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("world_size", sa.BigInteger(), nullable=False),
        sa.Column("resumed_after_epoch", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "epochs",
        _run_id(primary_key=True),
        sa.Column("epoch", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("train_loss", sa.Float(53)),
        sa.Column("validation_loss", sa.Float(53)),
        sa.Column("validation_metrics", sa.JSON(), nullable=False),
        sa.Column("nonfinite", sa.Boolean(), nullable=False),
        sa.Column("train_samples", sa.BigInteger(), nullable=False),
        sa.Column("train_nonfinite_samples", sa.BigInteger(), nullable=False),
        sa.Column("validation_nonfinite_samples", sa.BigInteger(), nullable=False),
        sa.Column("worker_seconds", sa.Float(53), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("event_id", sa.Integer(), primary_key=True),
        _run_id(),
        sa.Column("time", UtcDateTime(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("key", sa.String()),
        sa.UniqueConstraint("run_id", "key"),
    )
    op.create_index(None, "events", ["run_id", "time"])


def _run_id(*, primary_key: bool = False) -> sa.Column[str]:
    """Return the column that ties a row to its run."""
    return sa.Column(
        "run_id",
        sa.String(),
        sa.ForeignKey("runs.run_id", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
    )


def _make_sign_in() -> None:
    op.create_table(
        "tokens",
        sa.Column("token_hash", sa.String(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("session_hash", sa.String(), primary_key=True),
        sa.Column(
            "token_hash", sa.String(), sa.ForeignKey("tokens.token_hash", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
    )


def downgrade() -> None:
    """Drop all tables."""
    for table in ("sessions", "tokens", "events", "epochs", "attempts", "runs"):
        op.drop_table(table)
