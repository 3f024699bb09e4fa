"""The whole chain on the built-in checkpoint and songs."""
