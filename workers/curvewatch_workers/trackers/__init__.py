"""Trackers: TensorBoard, W&B, MLflow, CSV and JSONL, fed from the records that the service gets.

A tracker never ends a run and never makes training wait; docs/decisions/0009 says how it stays right over restarts.
"""

from curvewatch_workers.trackers.reporter import TrackingReporter, tracked

__all__ = ["TrackingReporter", "tracked"]
