"""From the records of all images to tables and files."""
