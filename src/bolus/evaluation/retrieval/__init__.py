"""The same person, found across a role."""
