"""A run on Ray: its workers, what they tell the driver, and how it ends."""
