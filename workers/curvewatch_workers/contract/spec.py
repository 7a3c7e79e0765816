"""The job specification: what a user writes in ``job.yaml``."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Strict,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from curvewatch_workers.contract.alerts import ALERT_PATTERN, ALERT_PREFIX, ALERTS_ON_RUNS

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
TASK_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
FRAMEWORK_PATTERN = r"^[a-z][a-z0-9_]{0,31}$"
LABEL_KEY_PATTERN = r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$"
CONFIDENTIAL = "confidential"
"""Type of an error whose value must not be shown."""


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"must hold printable characters only, got {value!r}; remove control characters")
    return value


MAX_PARAMS_DEPTH = 20
MAX_WORKERS = 4096


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


Precision = Literal["fp32", "bf16", "fp16"]


class Spec(BaseModel):
    """Base of every part of a job: immutable, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class CodeSpec(Spec):
    """Where the user's code is and which callable builds the task."""

    working_dir: Printable = "."
    """Folder that is shipped to the cluster, relative to the job file."""
    task: Annotated[str, StringConstraints(pattern=TASK_PATTERN)] | None = None
    """`module:callable`; called with `params` as keyword arguments, returns a `TrainingTask`; this or `loop`."""
    loop: Annotated[str, StringConstraints(pattern=TASK_PATTERN)] | None = None
    """`module:function`; called with `params` on each worker, trains by itself and tells its numbers to an
    `EpochMeter`."""
    trained_by: Annotated[str, StringConstraints(pattern=FRAMEWORK_PATTERN)] | None = None
    """Framework that trains the run outside of the cluster and reports it; in no job file."""

    @model_validator(mode="after")
    def _one_of_two(self) -> CodeSpec:
        if self.trained_by is not None:
            if self.task is not None or self.loop is not None:
                raise ValueError(
                    f"is trained by {self.trained_by}, so it names neither task nor loop; remove them"
                )
        elif (self.task is None) is (self.loop is None):
            raise ValueError(
                "must name either task (a callable that returns a TrainingTask) or loop (a function that trains by "
                f"itself), and {'neither' if self.task is None else 'both'} is there"
            )
        return self

    @property
    def entry(self) -> str:
        """The `module:name` that is called, whichever it is; for a run that is reported, what trains it."""
        return self.task or self.loop or self.trained_by or ""

    @property
    def entry_field(self) -> str:
        """The field that names it."""
        return "code.task" if self.task is not None else "code.loop"


class TrainingSpec(Spec):
    """How the model is trained. Nothing here depends on the number of workers."""

    epochs: Whole = Field(ge=1, le=1_000_000)
    """Passes over the train dataset."""
    global_batch_size: Whole = Field(ge=1)
    """Samples of one optimizer step, over all workers together."""
    seed: Whole = Field(default=0, ge=0, lt=2**63)
    """Seed of initial weights, of the order of samples and of dropout."""
    micro_batches: Whole = Field(default=1, ge=1)
    """Parts of a global batch whose gradients are added up before the step, to fit a large one into memory."""
    precision: Precision = "fp32"
    """Number format of forward and backward; the sums behind the metrics are float64 in any case. fp16 scales the
    loss so that small gradients do not vanish."""
    gradient_clip_norm: Number | None = Field(default=None, gt=0)
    """Largest L2 norm of the gradient of one step, over the parameters that the optimizer holds; null clips nothing."""
    data_workers: Whole = Field(default=0, ge=0, le=64)
    """Processes that load data, for each training worker; 0 loads in the worker itself."""
    find_unused_parameters: bool = False
    """Allow parameters that the loss of a step does not depend on; costs a walk over the graph at each step."""
    compile: bool = False
    """Compile the model with torch.compile: slow first steps, fast others."""
    sync_batchnorm: bool = False
    """Take BatchNorm's statistics over all workers, on GPUs; else each worker takes those of its share."""
    channels_last: bool = False
    """Lay model and inputs of four dimensions out with the channels last, which GPUs convolve faster."""
    tf32: bool = False
    """Let GPUs multiply fp32 matrices in TF32: faster, with 10 bits of mantissa."""


class WorkersRange(Spec):
    """A number of workers that follows what the cluster has."""

    min: Whole = Field(ge=1, le=MAX_WORKERS)
    """The run starts, and goes on, with as few as this."""
    max: Whole = Field(ge=1, le=MAX_WORKERS)
    """It never takes more."""

    @model_validator(mode="after")
    def _in_order(self) -> WorkersRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; swap them, or give one number")
        return self


NUMBER_OF_WORKERS, RANGE_OF_WORKERS = "a number", "a range"
"""The two forms of `scaling.workers`; they stand in the place of an error, and are taken out of it."""


def _form_of_workers(value: object) -> str:
    return RANGE_OF_WORKERS if isinstance(value, dict | WorkersRange) else NUMBER_OF_WORKERS


class ScalingSpec(Spec):
    """What one run takes from the cluster."""

    workers: Annotated[
        Annotated[Whole, Field(ge=1, le=MAX_WORKERS), Tag(NUMBER_OF_WORKERS)]
        | Annotated[WorkersRange, Tag(RANGE_OF_WORKERS)],
        Discriminator(_form_of_workers),
    ] = 1
    """Training processes; the world size. `{min: 1, max: 4}` lets it follow what the cluster has: the run shrinks when
    a node leaves and grows when one comes, each time from its latest checkpoint, along the same curve."""
    cpus_per_worker: Number = Field(default=1, gt=0)
    """CPUs that each worker reserves."""
    gpus_per_worker: Whole = Field(default=0, ge=0, le=1)
    """GPUs of each worker, 0 or 1: data-parallel training uses one process for each GPU."""
    resize_interval_seconds: Number = Field(default=60.0, ge=1)
    """Seconds between two looks at whether a run with a range of workers can have more of them; each change restarts
    it from its latest checkpoint."""

    @property
    def min_workers(self) -> int:
        """Fewest workers that train."""
        return self.workers.min if isinstance(self.workers, WorkersRange) else self.workers

    @property
    def max_workers(self) -> int:
        """Most workers that train."""
        return self.workers.max if isinstance(self.workers, WorkersRange) else self.workers

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.min_workers != self.max_workers

    @property
    def workers_in_words(self) -> str:
        """How many workers are asked for, as a person says it."""
        if self.elastic:
            return f"{self.min_workers} to {self.max_workers} workers"
        return f"{self.min_workers} worker{'s' if self.min_workers > 1 else ''}"

    def possible_workers(self, now: int) -> tuple[int, ...]:
        """Return every number of workers that a run may have which has so many now."""
        return tuple(range(self.min_workers, self.max_workers + 1)) if self.elastic else (now,)

    def cpus(self, workers: int) -> float:
        """Return the CPUs of so many workers together."""
        return workers * self.cpus_per_worker

    def gpus(self, workers: int) -> int:
        """Return the GPUs of so many workers together."""
        return workers * self.gpus_per_worker


def _storage_address(value: str) -> str:
    """Check a place for checkpoints: the same on every machine, and nothing in it that the API may not show."""
    if "://" not in value:
        if not value.startswith("/"):
            raise ValueError(
                f"must be an absolute path or a URI such as `s3://bucket/folder`, got {value!r}; "
                "a relative path means another folder on each machine"
            )
        return value
    if urlsplit(value).password is not None:
        raise PydanticCustomError(
            CONFIDENTIAL,
            "must not hold a password, because the job is shown to whoever may see the run; "
            "give the credentials to the workers' environment",
        )
    return value


class BestSpec(Spec):
    """Which checkpoint is the best: the ranking by which they are kept."""

    metric: Printable = "loss"
    """Validation number to rank by: `loss`, or the name of one of the task's metrics."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""


class CheckpointSpec(Spec):
    """When a checkpoint is taken, how many are kept, and where."""

    every_epochs: Whole = Field(default=1, ge=1)
    """A checkpoint after each so many epochs; one is always taken after the last epoch."""
    keep: Whole = Field(default=2, ge=1)
    """Checkpoints kept: so many of the best, and the latest besides."""
    best: BestSpec = BestSpec()
    """What makes a checkpoint better than another; a number that is not finite is worse than any that is."""
    path: Annotated[str, AfterValidator(_printable), AfterValidator(_storage_address)] | None = None
    """Where checkpoints are kept: an absolute path that all workers share, or a URI that pyarrow or fsspec
    understands, such as `s3://bucket/folder`; the run's own folder is made below it. null keeps them in the
    run's folder below the service's storage path."""
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
    warmup_epochs: Whole = Field(default=0, ge=0)
    """First epochs that patience does not count; the best of them still counts."""
    restore_best: bool = False
    """Put the weights of the best epoch back when the run stops early; every checkpoint then holds them too."""


class PolicySpec(Spec):
    """What is done about what the curve shows. What comes first here goes first when several apply."""

    on_nonfinite: Literal["continue", "skip_step", "stop"] = "continue"
    """What a loss or gradient that is NaN or infinite leads to: `continue` goes on, `skip_step` leaves the optimizer
    step out (and reads one number from the device at each step; BatchNorm's statistics keep the batch), `stop` ends
    the run as failed at the end of the epoch, without a checkpoint of it."""
    overfitting: Literal["observe", "stop"] = "observe"
    """What a run that overfits leads to, as soon as the diagnosis advises to stop: `observe` tells it in the run's
    events, `stop` ends the run with the weights of its best epoch. A run that is overconfident counts as one that
    overfits where checkpoints are ranked by the loss."""
    diverging: Literal["observe", "rescue"] = "observe"
    """What a run that diverges, or has no finite loss any more, leads to: `observe` tells it, `rescue` goes back to the
    last checkpoint from before the trouble and trains on from there with a lower learning rate."""
    plateau: Literal["observe", "reduce_lr", "stop"] = "observe"
    """What a run that has come to rest too high leads to: `observe` tells when the diagnosis advises to stop, `stop`
    ends the run then with the weights of its best epoch, `reduce_lr` lowers the learning rate at a verdict of plateau,
    and again if that still stands after the run's patience (`monitoring.patience_epochs`)."""
    learning_rate_factor: Number = Field(default=0.1, gt=0, lt=1)
    """What `rescue` and `reduce_lr` multiply the learning rate by; the schedule's own numbers too, so that it goes on
    from there."""
    max_interventions: Whole = Field(default=3, ge=1, le=100)
    """Rescues, and likewise reductions, in one run. A run that diverges after its last rescue has failed."""
    early_stopping: EarlyStoppingSpec | None = None
    """Stop when a number stops improving; null trains all epochs."""
    on_alert: dict[Annotated[str, StringConstraints(pattern=ALERT_PATTERN)], Literal["stop", "notify"]] = (
        Field(default_factory=dict, max_length=64)
    )
    """What an alert on the run leads to, by its name, as in `{CurvewatchOverfitting: stop}`: `notify` tells it in the
    run's events, as without a word here, `stop` ends the run after its current epoch. It comes after the verdict's own
    answer and after the user's stop."""
    max_seconds: Number | None = Field(default=None, gt=0)
    """Stop after the epoch in which the training time of all epochs, of the slowest worker, reaches this."""
    max_samples: Whole | None = Field(default=None, ge=1)
    """Stop after the epoch in which the train samples of all epochs reach this."""

    @field_validator("on_alert")
    @classmethod
    def _alerts_are_known(cls, on_alert: dict[str, str]) -> dict[str, str]:
        for name in on_alert:
            if name.startswith(ALERT_PREFIX) and name not in ALERTS_ON_RUNS:
                close = difflib.get_close_matches(name, ALERTS_ON_RUNS, n=1, cutoff=0.6)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ALERTS_ON_RUNS)}"
                raise ValueError(f"Curvewatch has no alert {name!r} on a run; {hint}")
        return on_alert

    @property
    def restores_best(self) -> bool:
        """Whether the weights of the best epoch may be put back when the run ends early."""
        return self.acts_at_end or (self.early_stopping is not None and self.early_stopping.restore_best)

    @property
    def acts_at_end(self) -> bool:
        """Whether a verdict may end the run, which then has the weights of its best epoch."""
        return "stop" in (self.overfitting, self.plateau) or self.diverging == "rescue"


class FaultToleranceSpec(Spec):
    """What happens when a worker, Ray Train's controller or the job's driver dies."""

    max_restarts: Whole = Field(default=3, ge=0, le=1000)
    """Restarts of the worker group, each from the latest checkpoint, before the run has failed; and new starts of a
    job whose driver died without a new epoch in between."""


class MonitoringSpec(Spec):
    """Knobs of the alerts of this run."""

    patience_epochs: Whole | None = Field(default=None, ge=1)
    """Epochs that validation loss may go without a new best before an alert; null takes early stopping's
    patience, else a tenth of the planned epochs, at least 3."""
    stalled_after_seconds: Number | None = Field(default=None, gt=0)
    """How long an epoch may be awaited, the first one too, before an alert; null takes ten times the longest epoch so
    far, at least ten minutes, and an hour before the first."""


TrackerName = Literal["tensorboard", "wandb", "mlflow", "csv", "jsonl"]
"""Where the curve can be written beside the service."""


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
    policy: PolicySpec = PolicySpec()
    """What is done about what the curve shows."""
    fault_tolerance: FaultToleranceSpec = FaultToleranceSpec()
    """How often the run starts again after the death of one of its parts."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """Knobs of the alerts."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that are given the curve too: `tensorboard`, `wandb`, `mlflow`, `csv`, `jsonl`; by default files in the
    run's folder."""
    labels: dict[
        Annotated[str, StringConstraints(pattern=LABEL_KEY_PATTERN)],
        Annotated[str, AfterValidator(_printable), StringConstraints(max_length=128)],
    ] = Field(default_factory=dict, max_length=16)
    """Free labels, shown in lists and carried by `curvewatch_run_info` as `label_<key>`."""

    @field_validator("track")
    @classmethod
    def _trackers_are_different(cls, track: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        twice = next((name for name in track if track.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} stands twice; name each tracker once")
        return track

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
        if self.policy.early_stopping is not None:
            return self.policy.early_stopping.patience
        return max(3, round(self.training.epochs / 10))
