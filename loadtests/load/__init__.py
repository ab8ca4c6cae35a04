"""Load tests with Locust: load shapes, a check of every answer, and an objective that decides the exit code."""
