"""Which student is tried next, and which goes on."""
