"""Measurements that need a GPU: `python -m loadtests.gpu`, and `python -m loadtests.gpu.service` where Ray is too."""
