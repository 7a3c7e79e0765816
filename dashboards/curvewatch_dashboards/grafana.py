"""The classic dashboard model of Grafana's Foundation SDK.

The SDK warns at import that a newer model exists. Grafana 11, and files that a sidecar provisions, know the
classic one only, so the warning is muted here, at the one place where the SDK is imported.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Prefer using dashboardv2", category=DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        bargauge,
        prometheus,
        stat,
        statetimeline,
        table,
        timeseries,
        trend,
    )
    from grafana_foundation_sdk.builders import common as common_builders
    from grafana_foundation_sdk.builders import dashboard as builders
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.variants import Dataquery
    from grafana_foundation_sdk.models import common, units
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = [
    "Builder",
    "Dataquery",
    "JSONEncoder",
    "PromQueryFormat",
    "bargauge",
    "builders",
    "common",
    "common_builders",
    "models",
    "prometheus",
    "stat",
    "statetimeline",
    "table",
    "timeseries",
    "trend",
    "units",
]
