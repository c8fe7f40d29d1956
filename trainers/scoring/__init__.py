"""What predictions are worth: error rates with intervals, by corpus."""
