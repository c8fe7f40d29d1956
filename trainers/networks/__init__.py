"""Encoders, heads and baselines, and how a student takes weights from its teacher."""
