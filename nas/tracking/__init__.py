"""MLflow: reached, written, read."""
