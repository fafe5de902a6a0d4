"""What ranks tell each other of their gradients when float32 is too much: communication hooks for DDP."""
