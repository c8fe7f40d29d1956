"""What was asked of a study and what happened in it: files, budget, candidates."""
