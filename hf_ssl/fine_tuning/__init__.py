"""A classifier on top of an encoder: settings, training, export."""
