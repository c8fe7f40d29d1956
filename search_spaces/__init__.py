"""What may be built: architectures, the spaces they are drawn from, and their closed-form cost."""
