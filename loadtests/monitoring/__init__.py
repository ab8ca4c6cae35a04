"""Runs the service with a real Prometheus; draws the dashboards and lists the firing alerts."""
