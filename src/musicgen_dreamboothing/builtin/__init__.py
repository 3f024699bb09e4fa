"""The whole chain on material made on the spot."""
