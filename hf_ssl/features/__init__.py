"""Features of a data set as a data set of their own: written in shards, searched, described, published."""
