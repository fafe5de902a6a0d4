"""Committed checkpoints: the protocol, the attempts that fence each other, storing behind the step."""
