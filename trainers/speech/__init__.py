"""Corpora: imported, checked, decoded, spoken."""
