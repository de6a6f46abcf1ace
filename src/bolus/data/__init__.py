"""From files and a table to batches: cohort, relations, pixels, splits, sampling, augmentation."""
