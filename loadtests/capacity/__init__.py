"""The capacity planner: computes replicas, nodes and cost from the measured curve of one replica."""
