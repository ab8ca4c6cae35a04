"""Training of the bundled model; SageMaker's training job, Model Registry and drift monitor."""
