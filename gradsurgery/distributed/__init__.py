"""Surgery over several processes: averaging before it, sharded parameters, and agreement."""
