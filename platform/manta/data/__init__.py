"""Data: the lake, contracts, and the two kinds of run that make datasets: ingests and feature tables."""
