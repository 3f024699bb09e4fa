"""From songs to clips, captions and tokens on disk."""
