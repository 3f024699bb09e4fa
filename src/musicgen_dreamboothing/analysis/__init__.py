"""Turns waves into facts: tempo, beats, key. Knows nothing of songs, options or models."""
