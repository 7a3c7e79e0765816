"""Learning curves in the files of other tools: CSV, JSON, JSON lines, TensorBoard, Weights & Biases, MLflow."""

from curvewatch_service.curve_files.reading import (
    HalfCurveError,
    curves_of_lines,
    join_charts,
    read_curves,
)
from curvewatch_service.curve_files.table import Columns, NamedCurve

__all__ = [
    "Columns",
    "HalfCurveError",
    "NamedCurve",
    "curves_of_lines",
    "join_charts",
    "read_curves",
]
