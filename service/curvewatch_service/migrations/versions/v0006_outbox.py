"""The epochs that the remote-write receiver has not taken yet, and the latest time that a run has there."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add their table, and the time."""
    op.create_table(
        "outbox",
        sa.Column("outbox_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("millisecond", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "epoch", "attempt"],
            ["epochs.run_id", "epochs.epoch", "epochs.attempt"],
            name=op.f("fk_outbox_run_id_epoch_attempt"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("outbox_id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("run_id", "epoch", "attempt", name=op.f("uq_outbox_run_id_epoch_attempt")),
    )
    op.add_column("runs", sa.Column("sent_until_millisecond", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Take both away."""
    op.drop_column("runs", "sent_until_millisecond")
    op.drop_table("outbox")
