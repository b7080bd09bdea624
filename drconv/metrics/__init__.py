"""Metrics: sums over samples, reduced over the ranks once."""
