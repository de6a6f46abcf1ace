"""Numbers and classes of the table: contrast by score, rankings and predictions."""
