"""Data sets as exact, endless streams of augmented views."""
