"""Measuring the running service: accuracy, load, failures. Results live in RESULTS.md."""
