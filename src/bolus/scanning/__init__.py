"""From a folder to a cohort: finders turn files into raw rows, one frame makes them private and writes the table."""
