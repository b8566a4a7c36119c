"""A finished run as a report, as pictures, and as a model that answers."""
