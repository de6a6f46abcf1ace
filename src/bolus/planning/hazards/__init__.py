"""What the columns must not teach."""
