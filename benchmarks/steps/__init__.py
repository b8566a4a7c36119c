"""Training steps: in a loop of one's own, under a framework, on several ranks."""
