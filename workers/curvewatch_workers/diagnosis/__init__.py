"""Read a learning curve: a pure function from losses by epoch to a verdict, its evidence and advice.

Needs the standard library only. docs/diagnosis.md defines the verdicts and the rules.
"""

from curvewatch_workers.diagnosis.curve import Curve, CurveSummary, summarize
from curvewatch_workers.diagnosis.diagnose import OnlineDiagnosis, diagnose, diagnoses
from curvewatch_workers.diagnosis.names import ACCURACIES_OF_TOOLS, VALIDATION_SPLITS
from curvewatch_workers.diagnosis.stopping import Savings, savings
from curvewatch_workers.diagnosis.verdict import Diagnosis, Evidence, Verdict

__all__ = [
    "ACCURACIES_OF_TOOLS",
    "VALIDATION_SPLITS",
    "Curve",
    "CurveSummary",
    "Diagnosis",
    "Evidence",
    "OnlineDiagnosis",
    "Savings",
    "Verdict",
    "diagnose",
    "diagnoses",
    "savings",
    "summarize",
]
