"""What a reader and MLflow get to see of a study."""
