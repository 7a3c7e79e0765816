"""Run the program as `python -m curvewatch_service.cli`."""

from curvewatch_service.cli import main

main()
