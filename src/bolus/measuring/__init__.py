"""What a machine can do with a recipe: decoding, steps, memory, and how they grow."""
