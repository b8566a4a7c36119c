"""What a finished run is made into: a report, pictures, and a model that answers."""
