"""The experiment of the paper, on any teacher and corpus."""
