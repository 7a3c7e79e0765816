"""Grafana dashboards and Prometheus rules as code, with the built files beside them."""
