"""Runs and their evaluations as one HTML file that opens anywhere: what was trained on whom, and what it is worth."""
