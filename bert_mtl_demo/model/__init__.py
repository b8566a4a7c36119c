"""The model: one encoder for all tasks, adapters, pooling, a head and a loss for each task."""
