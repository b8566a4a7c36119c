"""Papers beside the demo: questions of our own, answered with its models and its store."""
