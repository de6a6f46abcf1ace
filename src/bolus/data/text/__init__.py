"""Text of tables: spellings, identifiers, classes, dates, ages and sides."""
