"""What a student will need on a device: measured, predicted, scaled."""
