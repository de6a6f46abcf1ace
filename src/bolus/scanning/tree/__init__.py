"""Trees of images whose folders and names say what they are, by a pattern that is given or guessed."""
