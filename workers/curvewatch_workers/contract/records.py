"""The records of training: totals and counts of one epoch, from which every mean is derived."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")

LARGEST_MATRIX = 100
"""Most classes whose confusion matrix a record carries."""
_LARGEST_EXPONENT = 709.0

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[
    int, Field(ge=0, le=2**53)
]  # what a float64 holds exactly, as it does in charts and exports


class Record(BaseModel):
    """Base of what travels: immutable, closed, and NaN written as the string `NaN` (JSON has no NaN)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class MetricTotals(Record):
    """A metric before its division: the value follows from `total / count`."""

    total: Finite
    """Sum over samples, in the metric's unit."""
    count: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """What the total is divided by: samples, tokens or classes."""
    form: Literal["ratio", "root", "exponential"] = "ratio"
    """What is taken of the ratio: itself, its square root (RMSE) or its exponential (perplexity)."""

    @property
    def value(self) -> float:
        """The metric; NaN when nothing was counted, infinite where a float64 cannot hold it."""
        if not self.count:
            return math.nan
        ratio = self.total / self.count
        if self.form == "root":
            return math.sqrt(ratio)
        if self.form == "exponential":
            return math.exp(ratio) if ratio < _LARGEST_EXPONENT else math.inf
        return ratio


class RankShare(Record):
    """What one rank saw of a split in one epoch."""

    loss_sum: Finite
    """Weighted sum of the finite losses of this rank's samples."""
    weight_sum: Finite
    """Sum of their weights."""
    samples: Count
    """Samples that this rank saw, non-finite ones included."""

    @property
    def loss(self) -> float:
        """Mean loss of this rank, NaN when its share is empty."""
        return self.loss_sum / self.weight_sum if self.weight_sum else math.nan


class SplitRecord(Record):
    """Totals and counts of one split in one epoch, summed over all ranks."""

    loss_sum: Finite
    """Weighted sum of the finite per-sample losses."""
    loss_square_sum: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Weighted sum of their squares, for the standard error."""
    weight_sum: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Sum of the weights of the samples whose loss is finite; for plain losses their number."""
    weight_square_sum: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Sum of the squares of these weights; null where every weight is 1."""
    samples_expected: Count
    """Samples of the dataset."""
    samples_seen: Count
    """Samples that went through the model, over all ranks."""
    checksum_expected: Count
    """Sum of a hash of each index of the dataset, each once."""
    checksum_seen: Count
    """The same sum over the indices that the ranks really drew: a sample counted twice cannot hide one left out."""
    nonfinite_samples: Count
    """Samples whose loss was NaN or infinite; they are not in the sums."""
    metrics: dict[str, MetricTotals] = Field(default_factory=dict)
    """Totals and counts of each metric, by name."""
    matrices: dict[str, tuple[tuple[Count, ...], ...]] = Field(default_factory=dict)
    """Confusion matrices by name: row the true class, column the predicted one."""
    ranks: tuple[RankShare, ...] = Field(min_length=1)
    """What each rank saw, in order of rank."""
    reported_by: str | None = Field(default=None, min_length=1, max_length=64)
    """Framework whose own mean the loss is, such as `lightning`: its sums are not known, so that the weight is 1 and
    counts are 0. Null where every number follows from sums over samples."""

    @property
    def loss(self) -> float:
        """Mean loss over the samples whose loss is finite; NaN when there is none."""
        return self.loss_sum / self.weight_sum if self.weight_sum else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean loss, from the sum of squares; NaN below two samples.

        Weights count as many samples as would have the same spread of the mean if they weighed the same
        (Kish: Survey Sampling, 1965). NaN too for a loss whose square a float64 cannot hold.
        """
        square = self.loss * self.loss  # infinite where ** raises OverflowError
        weights = self.weight_sum if self.weight_square_sum is None else self.weight_square_sum
        samples = self.weight_sum / weights * self.weight_sum if weights else 0.0
        if samples <= 1 or not math.isfinite(square):
            return math.nan
        variance = self.loss_square_sum / self.weight_sum - square
        return math.sqrt(max(variance, 0.0) / (samples - 1))

    @property
    def exact(self) -> bool:
        """True only if each sample of the dataset was counted exactly once."""
        return (
            self.reported_by is None
            and self.samples_seen == self.samples_expected
            and self.checksum_seen == self.checksum_expected
            and sum(rank.samples for rank in self.ranks) == self.samples_seen
        )

    @property
    def rank_loss_spread(self) -> float:
        """Largest minus smallest mean loss over the ranks that saw samples; 0 with one such rank."""
        losses = [rank.loss for rank in self.ranks if rank.weight_sum]
        return max(losses) - min(losses) if losses else 0.0

    @property
    def metric_values(self) -> dict[str, float]:
        """Each metric by name, in the metric's unit."""
        return {name: totals.value for name, totals in self.metrics.items()}


class EpochRecord(Record):
    """One epoch of one attempt: the one thing that travels from the workers to the service."""

    run_id: str = Field(min_length=1, max_length=128)
    """The run that this epoch belongs to."""
    attempt: int = Field(ge=1)
    """Start of the worker group that trained it, from 1."""
    epoch: int = Field(ge=1)
    """Number of the epoch, from 1."""
    rolled_back_to: int | None = Field(default=None, ge=0)
    """Epoch whose weights this one began with, when a rescue had put them back; 0 for the initial ones; null for those
    of the epoch before."""
    world_size: int = Field(ge=1)
    """Ranks that took part."""
    started_at: AwareDatetime
    """When the train pass began."""
    finished_at: AwareDatetime
    """When the global numbers were known."""
    learning_rate: float
    """Learning rate of the first parameter group at the last step of the epoch."""
    gradient_norm: float | None = None
    """L2 norm of the global gradient at the last optimizer step of the epoch, before clipping, over the parameters that
    the optimizer holds."""
    skipped_steps: Count = 0
    """Optimizer steps that were left out because their gradient was not finite."""
    rank_seconds: tuple[Finite, ...]
    """Seconds that each rank spent in both passes, in order of rank."""
    rank_validation_seconds: tuple[Finite, ...] | None = None
    """Those of the validation pass, in which no rank waits for another; null where they are not known apart."""
    gpu_memory_peak_bytes: tuple[Count, ...] | None = None
    """Most bytes that each rank had allocated on its GPU; null without a GPU."""
    train: SplitRecord
    """The train split, measured while the weights moved."""
    validation: SplitRecord
    """The validation split, measured with the weights at the end of the epoch."""

    @property
    def duration_seconds(self) -> float:
        """Seconds from the start of the train pass to the global numbers."""
        return (self.finished_at - self.started_at).total_seconds()

    def split(self, name: Split) -> SplitRecord:
        """Return the record of one split."""
        return self.train if name == "train" else self.validation

    @model_validator(mode="after")
    def _one_entry_for_each_rank(self) -> EpochRecord:
        for what, entries in (
            ("rank_seconds", self.rank_seconds),
            ("rank_validation_seconds", self.rank_validation_seconds),
            ("train.ranks", self.train.ranks),
            ("validation.ranks", self.validation.ranks),
        ):
            if entries is not None and len(entries) != self.world_size:
                raise ValueError(f"{what} has {len(entries)} entries for a world size of {self.world_size}")
        return self

    @model_validator(mode="after")
    def _back_is_before(self) -> EpochRecord:
        if self.rolled_back_to is not None and self.rolled_back_to >= self.epoch - 1:
            raise ValueError(
                f"rolled_back_to is {self.rolled_back_to}, which is not before epoch {self.epoch - 1}, the one before "
                "this"
            )
        return self
