"""What workers and service agree on. Loads neither torch nor ray."""

from curvewatch_workers.contract.errors import ContractError, SpecError, SpecProblem
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
    BestSpec,
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
    "BestSpec",
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
    "parse_job_spec",
    "read_job_spec",
]
