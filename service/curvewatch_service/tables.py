"""The tables of the store. The migrations in `migrations/` make them; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time; aware and in UTC on the Python side, whatever the database keeps."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse a time without a zone: it could be any of 24 moments."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a stored time needs a time zone, got {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """SQLite keeps no zone: what comes back is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of the tables; names of constraints are fixed, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime,
        int: BigInteger,
        float: Float(53),
        dict[str, Any]: JSON(none_as_null=True),
    }


class RunRow(Base):
    """One run."""

    __tablename__ = "runs"
    __table_args__ = (Index(None, "state", "created_at"), Index(None, "created_at"))

    run_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(Text)
    spec: Mapped[str] = mapped_column(Text)
    code_hash: Mapped[str]
    ingest_token_hash: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(default=0)
    submission: Mapped[int] = mapped_column(default=0)
    control: Mapped[str]
    world_size: Mapped[int | None]
    epoch: Mapped[int] = mapped_column(default=0)
    outcome: Mapped[str | None]
    outcome_at: Mapped[datetime | None]
    outcome_reason: Mapped[str] = mapped_column(Text, default="")
    traceback: Mapped[str | None] = mapped_column(Text)
    checkpoint: Mapped[str | None] = mapped_column(Text)
    best_checkpoint: Mapped[str | None] = mapped_column(Text)
    diagnosis: Mapped[dict[str, Any] | None]
    sent_until_millisecond: Mapped[int | None]
    """Latest time that was given to an epoch of it in the outbox; milliseconds since 1970."""
    version: Mapped[int] = mapped_column()

    # An UPDATE of a row that somebody else changed meanwhile fails instead of overwriting it.
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class AttemptRow(Base):
    """One start of a run's worker group."""

    __tablename__ = "attempts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    started_at: Mapped[datetime]
    world_size: Mapped[int]
    resumed_after_epoch: Mapped[int]


class EpochRow(Base):
    """One epoch of one attempt. Of each epoch the highest attempt is visible; the others are its history."""

    __tablename__ = "epochs"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    # The columns repeat what curves and counters need, so that neither parses every record.
    # A loss that is NaN is null here: SQLite has no NaN.
    train_loss: Mapped[float | None]
    validation_loss: Mapped[float | None]
    validation_error: Mapped[float | None]
    """Standard error of the validation loss."""
    learning_rate: Mapped[float | None]
    validation_metrics: Mapped[dict[str, Any]]
    nonfinite: Mapped[bool]
    rolled_back_to: Mapped[int | None]
    """Epoch whose weights it began with, when a rescue had put them back."""
    train_samples: Mapped[int]
    train_nonfinite_samples: Mapped[int]
    validation_nonfinite_samples: Mapped[int]
    worker_seconds: Mapped[float]
    record: Mapped[str] = mapped_column(Text)


class OutboxRow(Base):
    """One epoch that the remote-write receiver has not taken yet. Of a run they are in the order of their times."""

    __tablename__ = "outbox"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "epoch", "attempt"],
            [EpochRow.run_id, EpochRow.epoch, EpochRow.attempt],
            ondelete="CASCADE",
        ),
        UniqueConstraint("run_id", "epoch", "attempt"),
    )

    # SQLite numbers rows by itself only in a plain INTEGER.
    outbox_id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str]
    epoch: Mapped[int]
    attempt: Mapped[int]
    millisecond: Mapped[int]
    """Time of its samples, in milliseconds since 1970."""


class EventRow(Base):
    """One thing that happened to a run; those with a key are kept once."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("run_id", "key"), Index(None, "run_id", "time"))

    # SQLite numbers rows by itself only in a plain INTEGER.
    event_id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id", ondelete="CASCADE"))
    time: Mapped[datetime]
    reason: Mapped[str]
    message: Mapped[str] = mapped_column(Text)
    actor: Mapped[str]
    key: Mapped[str | None]


class AlertRow(Base):
    """One alert on a run, from its start to its end; a new start of it is another one."""

    __tablename__ = "alerts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    """Alertmanager's hash of its labels."""
    started_at: Mapped[datetime] = mapped_column(primary_key=True)
    ended_at: Mapped[datetime | None]
    """None until its end is told."""
    told_at: Mapped[datetime | None]
    """When it was told the last time, by the service's clock; None since a Curvewatch that did not keep it."""
    name: Mapped[str]
    severity: Mapped[str]
    summary: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    runbook_url: Mapped[str] = mapped_column(Text)


class TokenRow(Base):
    """A user's token; only its hash is kept."""

    __tablename__ = "tokens"

    token_hash: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    created_at: Mapped[datetime]


class SessionRow(Base):
    """A signed-in browser; only the hash of its cookie is kept."""

    __tablename__ = "sessions"

    session_hash: Mapped[str] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(ForeignKey("tokens.token_hash", ondelete="CASCADE"))
    expires_at: Mapped[datetime]
