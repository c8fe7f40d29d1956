"""A teacher from unlabelled speech."""
