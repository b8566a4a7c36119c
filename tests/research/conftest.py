"""The fixtures of tiny runs."""

from tests.tiny_runs import finished, rows_of, settings, small_data, tiny_encoder

__all__ = ["finished", "rows_of", "settings", "small_data", "tiny_encoder"]
