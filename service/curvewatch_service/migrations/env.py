"""Run migrations on the connection that the store hands over."""

from __future__ import annotations

from alembic import context

from curvewatch_service.tables import Base

# Batches, because SQLite cannot alter most things of a table in place.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
