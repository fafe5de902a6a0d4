"""What a run tells MLflow: on disk at once, sent by a process of its own, closed in the right state."""
