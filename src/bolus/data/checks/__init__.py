"""What `bolus check` looks at."""
