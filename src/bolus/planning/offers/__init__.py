"""What the columns allow: contrasts, measures, pairs and images."""
