"""The capacity planner: from the measured curve of a replica to replicas, nodes and money."""
