"""From a recipe and a cohort to a trained encoder."""
