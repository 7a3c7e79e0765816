"""The command line; each command imports what it needs when it runs, so that `--help` answers at once."""

from curvewatch_service.cli.app import main

__all__ = ["main"]
