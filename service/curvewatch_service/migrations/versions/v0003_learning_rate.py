"""The learning rate of an epoch, beside its losses."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of epochs that are there it is not known."""
    op.add_column("epochs", sa.Column("learning_rate", sa.Float(53), nullable=True))


def downgrade() -> None:
    """Take it away."""
    with op.batch_alter_table("epochs") as batch:
        batch.drop_column("learning_rate")
