"""Callbacks of other trainers that feed Curvewatch, and stop by its verdict if they are told to.

`hooks.lightning`, `hooks.transformers` and `hooks.keras` have one `CurvewatchCallback` each, and each imports its
framework; nothing here does.
"""
