"""Pretrained encoders: read, checked, written."""
