"""When an alert was told the last time: of some the end is never told."""

import sqlalchemy as sa
from alembic import op

from curvewatch_service.tables import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the time."""
    op.add_column("alerts", sa.Column("told_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("alerts", "told_at")
