"""Implementations by other libraries, and whether their update equals ours."""
