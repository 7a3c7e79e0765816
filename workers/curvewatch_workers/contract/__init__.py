"""What workers and service agree on. Loads neither torch nor ray."""

from curvewatch_workers.contract.errors import ContractError, SpecError, SpecProblem
from curvewatch_workers.contract.failures import KeptFailure, last_failure, repeated_failure
from curvewatch_workers.contract.layout import RunLayout
from curvewatch_workers.contract.messages import (
    WORKER_JOB_VARIABLE,
    AttemptStarted,
    Control,
    EpochFinished,
    IngestAnswer,
    IngestMessage,
    IngestRequest,
    Outcome,
    RunFinished,
    WorkerEvent,
    WorkerJob,
)
from curvewatch_workers.contract.records import (
    SPLITS,
    EpochRecord,
    MetricTotals,
    RankShare,
    Split,
    SplitRecord,
)
from curvewatch_workers.contract.spec import (
    CheckpointSpec,
    CodeSpec,
    EarlyStoppingSpec,
    FaultToleranceSpec,
    JobSpec,
    MonitoringSpec,
    ScalingSpec,
    TrainingSpec,
)
from curvewatch_workers.contract.spec_file import parse_job_spec, read_job_spec

__all__ = [
    "SPLITS",
    "WORKER_JOB_VARIABLE",
    "AttemptStarted",
    "CheckpointSpec",
    "CodeSpec",
    "ContractError",
    "Control",
    "EarlyStoppingSpec",
    "EpochFinished",
    "EpochRecord",
    "FaultToleranceSpec",
    "IngestAnswer",
    "IngestMessage",
    "IngestRequest",
    "JobSpec",
    "KeptFailure",
    "MetricTotals",
    "MonitoringSpec",
    "Outcome",
    "RankShare",
    "RunFinished",
    "RunLayout",
    "ScalingSpec",
    "SpecError",
    "SpecProblem",
    "Split",
    "SplitRecord",
    "TrainingSpec",
    "WorkerEvent",
    "WorkerJob",
    "last_failure",
    "parse_job_spec",
    "read_job_spec",
    "repeated_failure",
]
