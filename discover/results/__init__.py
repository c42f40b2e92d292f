"""Results: comparisons of objectives, and the statistics of returns."""
