"""The epoch whose weights an epoch began with, after a rescue."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; no epoch that is there was trained after one."""
    op.add_column("epochs", sa.Column("rolled_back_to", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Take it away."""
    with op.batch_alter_table("epochs") as batch:
        batch.drop_column("rolled_back_to")
