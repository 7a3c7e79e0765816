"""The standard error of an epoch's validation loss, beside the loss."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of epochs that are there it is not known."""
    op.add_column("epochs", sa.Column("validation_error", sa.Float(), nullable=True))


def downgrade() -> None:
    """Take it away."""
    with op.batch_alter_table("epochs") as batch:
        batch.drop_column("validation_error")
