"""What a search will do with its budget, decided before and while it runs."""
