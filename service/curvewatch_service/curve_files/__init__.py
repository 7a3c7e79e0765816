"""Learning curves in the files of other tools: CSV, JSON, JSON lines, TensorBoard, Weights & Biases, MLflow."""

from curvewatch_service.curve_files.reading import (
    HalfCurveError,
    curve_of_line,
    join_charts,
    numbered_lines,
    read_curves,
)
from curvewatch_service.curve_files.table import Columns, NamedCurve

__all__ = [
    "Columns",
    "HalfCurveError",
    "NamedCurve",
    "curve_of_line",
    "join_charts",
    "numbered_lines",
    "read_curves",
]
