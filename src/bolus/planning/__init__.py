"""From a cohort to the recipe that its columns allow, with reasons, and what its test patients can decide."""
