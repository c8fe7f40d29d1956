"""One training, as it runs on any node."""
