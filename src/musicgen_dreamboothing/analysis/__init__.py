"""Measurements of waves: tempo, beats, key, loudness, defects, duplicates."""
