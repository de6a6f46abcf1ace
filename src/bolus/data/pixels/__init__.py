"""What stored pixels mean: grey values, ranges, lookup tables, shapes of pixels."""
