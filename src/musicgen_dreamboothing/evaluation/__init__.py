"""Comparing a run with its base: clips, figures, report, blind page."""
