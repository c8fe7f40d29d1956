"""What the layers of a teacher hold."""
