"""Every number and name that a site may want to turn, in one place; build again after a change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What rules and dashboards are built with; what belongs to one run comes as a series instead."""

    hold: str = "15s"
    """How long a condition must hold before its alert fires.

    Patience, counted in epochs, is what waits for a trend. This only makes two evaluations in a row agree,
    so that one odd scrape alerts nobody. It must stay far below the linger (10 minutes by default) for which
    a finished run remains visible, or a run of a few seconds would never alert.
    """
    tolerated_train_rise: float = 0.1
    """Rise of train loss over the patience, as a share of the rise of validation loss above its best, up to
    which train loss counts as not rising: a memorised train set leaves a slope of either sign near zero."""
    diverging_epochs: int = 3
    """Epochs without a new best before a validation loss can be called diverging; a whole patience would be
    too long to wait, because a loss that has diverged seldom comes back."""
    nonfinite_epochs: int = 2
    """Epochs in a row with some losses that are not finite, before that is called an alert; one with no finite loss
    at all is enough by itself."""
    restarts: int = 3
    """Restarts of a run's workers, within the window, that are too many."""
    restarts_window: str = "1h"
    straggler_ratio: float = 1.5
    """How many times slower than the median rank is slow."""
    straggler_epochs: int = 3
    """Epochs before a rank can be called slow: the first one warms up."""
    unbalanced_share: float = 0.2
    """Largest difference of the ranks' train samples, as a share of their mean, that is even enough."""
    service_hold: str = "5m"
    """How long what concerns the service must hold: a restart of it is no trouble."""
    errors_window: str = "10m"
    """Over what time errors of the service are counted."""
    ingest_errors: int = 5
    """Refused or failed ingest requests, within that time, that are nothing yet: workers try again."""
    reconcile_errors: int = 5
    """Failed looks at a run, within that time, that are nothing yet: the cluster may be away for a moment."""
    remote_write_failures: int = 10
    """Failed remote writes, within that time, that are nothing yet: epochs wait, and one that is away for good is tried
    every 15 to 30 s."""
    scrape_jobs: str = ".*curvewatch.*"
    """Regular expression of the names of the scrape jobs of the service."""
    curves_jobs: str = ".*curvewatch.*curves.*"
    """Regular expression of those among them that scrape its curves by epoch: no alert reads them."""
    runbook: str = "docs/runbook.md"
    """Where the runbook is published; put the full address here when it has one."""
    run_dashboard_uid: str = "curvewatch-run"
    """Fixed identity of a dashboard, so that links survive a rebuild."""
    compare_dashboard_uid: str = "curvewatch-compare"
    fleet_dashboard_uid: str = "curvewatch-fleet"
    dashboard_refresh: str = "10s"
    """How often an open dashboard asks again."""
    dashboard_from: str = "now-3h"
    """First moment that a dashboard shows when it is opened."""
    rule_labels: tuple[tuple[str, str], ...] = (
        ("app.kubernetes.io/name", "curvewatch"),
        ("release", "prometheus"),
    )
    """Labels of the PrometheusRule and the ServiceMonitor; `release` is what kube-prometheus-stack selects
    by."""
    folder_uid: str = "curvewatch"
    """Fixed identity of the folder of the dashboards, so that it may be renamed."""
    folder_title: str = "Curvewatch"
    """Title that the folder gets when it is made."""
    datasource_uid: str = "curvewatch-prometheus"
    """Fixed identity of the data source, where one is published or provisioned."""
    datasource_name: str = "Curvewatch Prometheus"
    """Name of that data source."""
    prometheus_url: str = "http://127.0.0.1:9090"
    """Prometheus of the provisioned data source, as Grafana's own machine reaches it."""
    scrape_interval: str = "15s"
    """How often that Prometheus scrapes the service; Grafana asks for no finer steps."""
    curves_interval: str = "60s"
    """How often it scrapes the curves by epoch, which are many series."""
    rules_file: str = "rules.yaml"
    """Where the built rules lie, from the folder of Prometheus' configuration."""
    alertmanager_address: str = "127.0.0.1:9093"
    """Host and port of the Alertmanager that gets the alerts."""
    service_url: str = "http://127.0.0.1:8420"
    """The service, as Prometheus and Alertmanager reach it."""
    alerts_token_file: str = "/etc/alertmanager/curvewatch-token"  # noqa: S105 - a path
    """File, on Alertmanager's machine, of the token with which it tells the service of alerts."""
    service_group_wait: str = "5s"
    """How long Alertmanager waits for more alerts on a run before it tells the service."""
    service_group_interval: str = "15s"
    """How long it waits before it tells the service of a change to those."""
    service_repeat_interval: str = "5m"
    """How often it tells the service again of what fires: of some alerts the end is not told, and the service takes for
    over what it has not heard of for a quarter of an hour (`CURVEWATCH_ALERT_SILENCE_SECONDS`)."""
    provisioned_folder: str = "/etc/grafana/curvewatch"
    """Where the built dashboards are mounted for a Grafana that is provisioned with files."""
