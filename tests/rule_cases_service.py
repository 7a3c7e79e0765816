"""Cases of the alerts on the service itself: what Prometheus has scraped of it, and when an alert fires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INGEST, COLLECTOR = "CurvewatchIngestErrors", "CurvewatchCollectorErrors"
RECONCILE, HISTORY = "CurvewatchReconcileErrors", "CurvewatchHistoryNotWritten"
ABSENT, WATCHDOG = "CurvewatchMetricsAbsent", "CurvewatchWatchdog"
TOLERATED = "as few as are nothing yet"
TARGET = 'job="curvewatch",instance="service:8420"'
UP = {f"up{{{TARGET}}}": "1x400", f'curvewatch_build_info{{{TARGET},version="1"}}': "1x400"}
OTHER = 'job="curvewatch",instance="other:8420"'
OF_TARGET = {"job": "curvewatch", "instance": "service:8420"}
COUNTERS = {
    INGEST: "curvewatch_ingest_errors_total",
    COLLECTOR: "curvewatch_collector_errors_total",
    RECONCILE: "curvewatch_reconcile_errors_total",
    HISTORY: "curvewatch_remote_write_failures_total",
}


@dataclass(frozen=True, kw_only=True)
class ServiceCase:
    """Series, a value each 15 s, and the labels of the alert where it fires."""

    name: str
    alert: str
    kind: Literal["fires", "quiet", "resolves"]
    series: dict[str, str]
    checks: tuple[tuple[int, tuple[dict[str, str], ...]], ...]
    """Seconds, and the labels of each alert that fires then."""


def counting(alert: str, values: str, target: str = TARGET) -> dict[str, str]:
    """Make the series of a service that is up and counts errors so."""
    return {**UP, f"{COUNTERS[alert]}{{{target}}}": values}


def of_errors(alert: str, tolerated: int) -> tuple[ServiceCase, ...]:
    """Make the cases of an alert on a count of errors; each error of the innocent ones is tolerated."""
    told = (OF_TARGET,)
    grows = "0x20 1+1x400"
    two = {**counting(alert, grows), **counting(alert, "0x400", OTHER)}
    return (
        # The 21st scrape, at 315 s, has the first error.
        ServiceCase(
            name="errors at each scrape",
            alert=alert,
            kind="fires",
            series=counting(alert, grows),
            checks=((600, ()), (900, told)),
        ),
        ServiceCase(
            name="two services, one has errors",
            alert=alert,
            kind="fires",
            series=two,
            checks=((900, told),),
        ),
        ServiceCase(
            name=TOLERATED,
            alert=alert,
            kind="quiet",
            series=counting(alert, f"0x20 {tolerated}x380"),
            checks=tuple((seconds, ()) for seconds in range(0, 3000, 60)),
        ),
        ServiceCase(
            name="many, but before the service began anew",
            alert=alert,
            kind="quiet",
            series=counting(alert, "500x3 0x380"),
            checks=tuple((seconds, ()) for seconds in range(0, 3000, 60)),
        ),
        ServiceCase(
            name="no more errors",
            alert=alert,
            kind="resolves",
            series=counting(alert, "0x20 1+1x60 61x300"),
            checks=((1200, told), (1260 + 660, ())),
        ),
    )


SERVICE_CASES = (
    *of_errors(INGEST, tolerated=5),
    *of_errors(COLLECTOR, tolerated=0),
    *of_errors(RECONCILE, tolerated=5),
    *of_errors(HISTORY, tolerated=10),
    ServiceCase(
        name="the service is down",
        alert=ABSENT,
        kind="fires",
        series={
            f"up{{{TARGET}}}": "1x20 0x380",
            f'curvewatch_build_info{{{TARGET},version="1"}}': "1x20 stale",
        },
        checks=((300, ()), (540, ()), (630, (OF_TARGET, {}))),
    ),
    ServiceCase(
        name="one of two is down",
        alert=ABSENT,
        kind="fires",
        series={**UP, f"up{{{OTHER}}}": "1x20 0x380"},
        checks=((300, ()), (630, ({"job": "curvewatch", "instance": "other:8420"},))),
    ),
    ServiceCase(
        name="nobody scrapes it",
        alert=ABSENT,
        kind="fires",
        series={'up{job="node",instance="n:9100"}': "1x400"},
        checks=((240, ()), (330, ({},))),
    ),
    ServiceCase(
        name="a restart of two minutes",
        alert=ABSENT,
        kind="quiet",
        series={
            f"up{{{TARGET}}}": "1x20 0x8 1x370",
            f'curvewatch_build_info{{{TARGET},version="1"}}': "1x400",
        },
        checks=tuple((seconds, ()) for seconds in range(0, 3000, 60)),
    ),
    ServiceCase(
        name="something else is down",
        alert=ABSENT,
        kind="quiet",
        series={**UP, 'up{job="node",instance="n:9100"}': "0x400"},
        checks=tuple((seconds, ()) for seconds in range(0, 3000, 60)),
    ),
    ServiceCase(
        name="the curves cannot be scraped, which no alert reads",
        alert=ABSENT,
        kind="quiet",
        series={
            **UP,
            'up{job="curvewatch-curves",instance="service:8420"}': "0x400",
            f'up{{{TARGET},metrics_path="/metrics/curves"}}': "0x400",
        },
        checks=tuple((seconds, ()) for seconds in range(0, 3000, 60)),
    ),
    ServiceCase(
        name="it is back",
        alert=ABSENT,
        kind="resolves",
        series={
            f"up{{{TARGET}}}": "0x40 1x300",
            f'curvewatch_build_info{{{TARGET},version="1"}}': "_x41 1x300",
        },
        checks=((600, (OF_TARGET, {})), (630, ())),
    ),
    ServiceCase(name="always", alert=WATCHDOG, kind="fires", series=UP, checks=((0, ({},)), (900, ({},)))),
    ServiceCase(
        name="also where nothing is scraped", alert=WATCHDOG, kind="fires", series={}, checks=((15, ({},)),)
    ),
)
"""Every case of every alert on the service."""
