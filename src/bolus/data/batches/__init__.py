"""Relations, batches, views and loading."""
