"""Training: a run from its settings to its checkpoint, in one process or several."""
