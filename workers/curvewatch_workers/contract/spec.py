"""The job specification: what a user writes in ``job.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    StringConstraints,
    field_validator,
)

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
TASK_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
LABEL_KEY_PATTERN = r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$"


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"must hold printable characters only, got {value!r}; remove control characters")
    return value


MAX_PARAMS_DEPTH = 20


def _require_flat(value: JsonValue, depth: int) -> None:
    """Check that a value is not nested deeper than the workers' JSON may be."""
    if depth > MAX_PARAMS_DEPTH:
        raise ValueError(f"must be nested at most {MAX_PARAMS_DEPTH} deep; put deep structures into a file")
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_flat(entry, depth + 1)


Whole = Annotated[int, Strict()]
"""A whole number, and no yes or no: `epochs: yes` would be 1."""
Number = Annotated[float, Strict()]
"""A number, whole or not, and no yes or no and no text: `cpus_per_worker: yes` would be 1."""
Printable = Annotated[str, AfterValidator(_printable)]


class Spec(BaseModel):
    """Base of every part of a job: immutable, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class CodeSpec(Spec):
    """Where the user's code is and which callable builds the task."""

    working_dir: Printable = "."
    """Folder that is shipped to the cluster, relative to the job file."""
    task: Annotated[str, StringConstraints(pattern=TASK_PATTERN)]
    """`module:callable`; called with `params` as keyword arguments, returns a `TrainingTask`."""


class TrainingSpec(Spec):
    """How the model is trained. Nothing here depends on the number of workers."""

    epochs: Whole = Field(ge=1, le=1_000_000)
    """Passes over the train dataset."""
    global_batch_size: Whole = Field(ge=1)
    """Samples of one optimizer step, over all workers together."""
    seed: Whole = Field(default=0, ge=0, lt=2**63)
    """Seed of initial weights, of the order of samples and of dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of forward and backward; the sums behind the metrics are float64 in any case."""
    gradient_clip_norm: Number | None = Field(default=None, gt=0)
    """Largest L2 norm of the gradient of one step; null clips nothing."""
    data_workers: Whole = Field(default=0, ge=0, le=64)
    """Processes that load data, for each training worker; 0 loads in the worker itself."""
    find_unused_parameters: bool = False
    """Allow parameters that the loss of a step does not depend on; costs a walk over the graph at each step."""


class ScalingSpec(Spec):
    """What one run takes from the cluster."""

    workers: Whole = Field(default=1, ge=1, le=4096)
    """Training processes; the world size."""
    cpus_per_worker: Number = Field(default=1, gt=0)
    """CPUs that each worker reserves."""
    gpus_per_worker: Whole = Field(default=0, ge=0, le=1)
    """GPUs of each worker, 0 or 1: data-parallel training uses one process for each GPU."""

    @property
    def total_cpus(self) -> float:
        """CPUs of all workers together."""
        return self.workers * self.cpus_per_worker

    @property
    def total_gpus(self) -> int:
        """GPUs of all workers together."""
        return self.workers * self.gpus_per_worker


class CheckpointSpec(Spec):
    """When a checkpoint is taken and how many are kept."""

    every_epochs: Whole = Field(default=1, ge=1)
    """A checkpoint after each so many epochs; one is always taken after the last epoch."""
    keep: Whole = Field(default=2, ge=1)
    """Checkpoints kept: those of lowest validation loss, and the latest always."""
    min_interval_seconds: Number = Field(default=2.0, ge=0)
    """A checkpoint that is due sooner than this after the last one is left out, so that short epochs are not
    spent on checkpoints."""


class EarlyStoppingSpec(Spec):
    """Stop when a number has not improved for `patience` epochs."""

    metric: Printable = "loss"
    """Validation number to watch: `loss`, or the name of one of the task's metrics."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""
    patience: Whole = Field(default=10, ge=1)
    """Epochs without improvement after which the run stops."""
    min_delta: Number = Field(default=0.0, ge=0)
    """Smallest change, in the number's own unit, that counts as an improvement."""


class FaultToleranceSpec(Spec):
    """What happens when a worker dies."""

    max_restarts: Whole = Field(default=3, ge=0, le=1000)
    """Restarts of the worker group, each from the latest checkpoint, before the run has failed."""


class MonitoringSpec(Spec):
    """Knobs of the alerts of this run."""

    patience_epochs: Whole | None = Field(default=None, ge=1)
    """Epochs that validation loss may go without a new best before an alert; null takes early stopping's
    patience, else a tenth of the planned epochs, at least 3."""


class JobSpec(Spec):
    """One training job, as the user writes it in `job.yaml`."""

    name: Annotated[str, AfterValidator(_printable), StringConstraints(pattern=NAME_PATTERN)]
    """Name of the run in lists and on dashboards: letters, digits, `.`, `_` and `-`, at most 63 characters."""
    code: CodeSpec
    """The user's code."""
    params: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the task's callable: learning rate, width, path of the data."""
    training: TrainingSpec
    """How the model is trained."""
    scaling: ScalingSpec = ScalingSpec()
    """What the run takes from the cluster."""
    checkpoints: CheckpointSpec = CheckpointSpec()
    """When a checkpoint is taken."""
    early_stopping: EarlyStoppingSpec | None = None
    """Stop early when a number stops improving; null trains all epochs."""
    fault_tolerance: FaultToleranceSpec = FaultToleranceSpec()
    """How often the run starts again after the death of a worker."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """Knobs of the alerts."""
    labels: dict[
        Annotated[str, StringConstraints(pattern=LABEL_KEY_PATTERN)],
        Annotated[str, AfterValidator(_printable), StringConstraints(max_length=128)],
    ] = Field(default_factory=dict, max_length=16)
    """Free labels, shown in lists and carried by `curvewatch_run_info` as `label_<key>`."""

    @field_validator("params")
    @classmethod
    def _params_are_keywords(cls, params: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key in params:
            if not key.isidentifier():
                raise ValueError(f"key {key!r} is no Python keyword argument; use letters, digits and `_`")
        _require_flat(params, depth=0)
        return params

    @property
    def patience_epochs(self) -> int:
        """Epochs without a new best validation loss that the alerts of this run allow."""
        if self.monitoring.patience_epochs is not None:
            return self.monitoring.patience_epochs
        if self.early_stopping is not None:
            return self.early_stopping.patience
        return max(3, round(self.training.epochs / 10))
