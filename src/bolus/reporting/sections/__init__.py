"""The sections of a report: each turns what the files of runs say into words, tables and charts."""
