"""Corpora: checked, decoded, and their trial lists."""
