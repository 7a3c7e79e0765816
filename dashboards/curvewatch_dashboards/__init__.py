"""Grafana dashboards and Prometheus rules as code; the built files lie in `built/`."""
