"""What `datasets` resolves, opened: files, columns, labels."""
