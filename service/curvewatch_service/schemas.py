"""What the API answers: the views that the client, the command line and the page read."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from curvewatch_workers.contract import EpochRecord, JobSpec

SAMPLES_HEADER = "Curvewatch-Samples"
"""Header of a history: how many samples it has, so that a client can tell how far it is."""


class View(BaseModel):
    """Base of every answer; numbers that are not finite are null."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="null")


class ReceiptView(View):
    """Proof of what was counted in one split of one epoch."""

    samples_expected: int
    """Samples of the dataset."""
    samples_seen: int
    """Samples that went through the model, over all ranks."""
    nonfinite_samples: int
    """Samples whose loss was NaN or infinite."""
    ranks: int
    """Ranks that took part."""
    exact: bool
    """True only if each sample was counted exactly once."""
    reported_by: str | None = None
    """Framework whose own means the numbers are, so that nothing was counted; null where they follow from sums."""


class SplitView(View):
    """The global numbers of one split of one epoch."""

    loss: float | None
    """Mean over every sample of finite loss; null when there is none."""
    standard_error: float | None
    """Standard error of that mean."""
    metrics: dict[str, float | None]
    """Metrics by name, ratios from 0 to 1 where the metric is one."""
    rank_loss_spread: float
    """Largest minus smallest mean loss over the ranks."""
    receipt: ReceiptView
    """What was counted."""


class EpochView(View):
    """One epoch of a run: the record of its highest attempt."""

    epoch: int
    attempt: int
    world_size: int
    started_at: datetime
    finished_at: datetime
    duration_seconds: float
    learning_rate: float | None
    gradient_norm: float | None
    rolled_back_to: int | None = None
    """Epoch whose weights it began with, when a rescue had put them back; 0 for the initial ones."""
    train: SplitView
    validation: SplitView


class EvidenceView(View):
    """One observation behind a verdict."""

    rule: str
    """Name of the rule."""
    message: str
    """The observation in one sentence, with its numbers."""
    epochs: list[int]
    """Epochs that it is about."""
    values: list[float | None]
    """Values at those epochs."""


class SavingsView(View):
    """A run beside the same run stopped after some epoch, each with its best checkpoint."""

    stop_epoch: int
    """The last epoch that would have been trained."""
    epochs: int
    """Epochs after it."""
    seconds: float | None
    """How long they took, each as long as its slowest rank; null where that is not known."""
    gpu_hours: float | None
    """GPUs times hours of them; null for a job without GPUs, and where that is not known."""
    loss: float | None
    """By how much the best validation loss came down after the stop; 0 for a stop at the best epoch."""


class DiagnosisView(View):
    """What the curve says so far."""

    verdict: str
    confidence: float | None = None
    """From 0.5 towards 1; null for a run that was diagnosed before there was one."""
    stop: bool = False
    """Whether to stop now and take the best epoch."""
    summary: str
    advice: str
    evidence: list[EvidenceView]
    best_epoch: int | None
    best_validation_loss: float | None
    epochs_since_best: int | None
    savings: SavingsView | None = None
    """What stopping at the best epoch would have saved so far; null while that is the latest epoch."""


class AlertView(View):
    """An alert on a run."""

    name: str
    severity: str
    """critical, warning or info."""
    summary: str
    description: str
    runbook_url: str
    """What to do about it; empty where nobody published it."""
    started_at: datetime
    ended_at: datetime | None
    """Null while it fires; when it was told the last time, where its end was not."""


class RunSummary(View):
    """A run in a list."""

    run_id: str
    name: str
    owner: str
    state: str
    reason: str
    """Why the run is in this state, one sentence."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    """Latest attempt, 0 before the first."""
    epoch: int
    """Latest finished epoch, 0 before the first."""
    epochs_planned: int | None
    """Epochs that the run is to have; null for one that is trained elsewhere without an end of its own."""
    world_size: int | None
    verdict: str | None
    train_loss: float | None
    validation_loss: float | None
    labels: dict[str, str]


class RunView(RunSummary):
    """A run, whole."""

    spec: JobSpec
    code_hash: str
    """SHA-256 of the zipped code folder; empty for a run that is trained elsewhere."""
    submission_id: str | None
    """Job of the Ray cluster that runs it now or ran it last."""
    traceback: str | None
    """Traceback of the user's code, when that is what failed."""
    checkpoint: str | None
    """Path or URI of the latest checkpoint, once the run has ended."""
    best_checkpoint: str | None
    alerts: list[AlertView] = []
    """Those that fire, then those that did, the latest first."""
    """Path or URI of the best checkpoint by the job's `checkpoints.best`, once the run has ended."""
    diagnosis: DiagnosisView | None
    latest: EpochView | None


class EventView(View):
    """One thing that happened to a run."""

    time: datetime
    reason: str
    """Stable key, such as `state_running` or `worker_restart`."""
    message: str
    actor: str
    """Who did it: a user, `service`, or `worker`."""


class RunList(View):
    """Answer of `GET /api/v1/runs`, newest first."""

    runs: list[RunSummary]
    total: int


class EpochList(View):
    """Answer of `GET /api/v1/runs/{run_id}/epochs`, in order."""

    epochs: list[EpochView]


class RecordList(View):
    """Answer of `GET /api/v1/runs/{run_id}/records`, in order.

    Numbers that are not finite are strings, as the workers send them.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    records: list[EpochRecord]


class EventList(View):
    """Answer of `GET /api/v1/runs/{run_id}/events`, in order."""

    events: list[EventView]


class LogView(View):
    """Answer of `GET /api/v1/runs/{run_id}/logs`."""

    text: str


class Problem(View):
    """Every error of the API."""

    title: str
    """Class of the error, such as `CannotFitError`."""
    status: int
    detail: str
    """One sentence: the thing, the rule, the value, the remedy."""
    problems: list[str] = []
    """Each thing that is wrong, when there are several."""
