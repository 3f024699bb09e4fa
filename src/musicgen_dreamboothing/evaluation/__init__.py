"""Judging sound by its signal alone: styles, tempo and pulse, without another network."""
