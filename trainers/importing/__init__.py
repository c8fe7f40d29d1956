"""What makes a corpus of folders, of downloads or of synthesised speech."""
