"""Benchmarks: what surgery costs, measured beside plain training in one run."""
