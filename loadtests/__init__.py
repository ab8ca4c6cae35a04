"""Measures the running service: accuracy, load and failures. The results are in RESULTS.md."""
