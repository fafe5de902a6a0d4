"""What is measured of a network and of its training."""
