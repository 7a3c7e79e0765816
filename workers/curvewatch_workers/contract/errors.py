"""Errors of the contract.

ContractError
└── SpecError: a job file that cannot be used, with every problem at once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ContractError(Exception):
    """Something does not keep to the contract between user, workers and service."""


@dataclass(frozen=True, kw_only=True)
class SpecProblem:
    """One thing that is wrong with a job."""

    path: str
    """The field, as in `training.epochs`; empty for the file as a whole."""
    message: str
    """What is wrong, with the value and the remedy."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(ContractError):
    """The job cannot be used."""

    def __init__(self, source: str, problems: Sequence[SpecProblem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))
