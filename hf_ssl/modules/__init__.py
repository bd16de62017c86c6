"""Parts that several methods share; they know nothing of methods."""
