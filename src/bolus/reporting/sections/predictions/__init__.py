"""What the files of evaluations say of single test samples: calibration, agreement, and the hardest cases."""
