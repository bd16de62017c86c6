"""Records in training order and in the order of the files."""
