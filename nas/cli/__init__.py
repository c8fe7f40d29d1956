"""The commands: thin, one file a noun, everything heavy imported late."""
