"""Captions: own, measured or tagged; `metadata.jsonl`, which people edit."""
