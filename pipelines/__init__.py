"""What a run is made of: configuration, data, training, tracking, registry, and the command line."""
