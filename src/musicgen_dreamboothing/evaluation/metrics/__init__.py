"""Measures on arrays: statistics, distances, adherence, originality, embeddings."""
