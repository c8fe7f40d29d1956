"""The steps of a search: plan, shared student, exploration, finalists."""
