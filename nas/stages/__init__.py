"""The steps of a search: tutor, shared student, exploration, finals."""
