"""Results of a run: figures with intervals, tables and files."""
