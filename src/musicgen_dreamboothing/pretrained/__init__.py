"""Other people's models: CLAP, demucs, audio captioners."""
