"""Data, not code: templates and lists."""
