"""Series that are not the service's own: alerts of Prometheus, and GPUs as DCGM's exporter shows them."""

from __future__ import annotations

from curvewatch_workers.series import Kind, Series

_GPU_LABELS = ("Hostname", "gpu", "UUID", "device", "modelName")


def _gpu(name: str, help_text: str, unit: str) -> Series:
    return Series(name=name, kind=Kind.GAUGE, help=help_text, labels=_GPU_LABELS, unit=unit)


UP = Series(
    name="up",
    kind=Kind.GAUGE,
    help="Whether the latest scrape of a target succeeded.",
    labels=("job", "instance"),
)
ALERTS = Series(
    name="ALERTS",
    kind=Kind.GAUGE,
    help="1 for each pending or firing alert.",
    labels=("alertname", "alertstate", "severity", "component", "run_id", "run", "owner"),
)
GPU_UTILIZATION = _gpu("DCGM_FI_DEV_GPU_UTIL", "Share of time in which a kernel ran.", "percent")
GPU_MEMORY_USED = _gpu("DCGM_FI_DEV_FB_USED", "Memory in use, in MiB.", "mbytes")
GPU_POWER = _gpu("DCGM_FI_DEV_POWER_USAGE", "Power drawn.", "watt")
GPU_TEMPERATURE = _gpu("DCGM_FI_DEV_GPU_TEMP", "Temperature of the GPU.", "celsius")
FOREIGN: dict[str, Series] = {
    one.name: one for one in (UP, ALERTS, GPU_UTILIZATION, GPU_MEMORY_USED, GPU_POWER, GPU_TEMPERATURE)
}
"""All of them by name, as the table of the service's own series has those."""
