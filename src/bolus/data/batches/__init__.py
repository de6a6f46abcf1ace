"""Relations, batches and loading."""
