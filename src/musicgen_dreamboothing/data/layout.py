"""Names of files and folders that several stages share, and by which what this program made is recognised."""

from __future__ import annotations

CLIPS = "clips"  # the clips, with their metadata
METADATA = "metadata.jsonl"  # in `CLIPS`: one line per clip, edited by people
SONGS = "songs.jsonl"  # one line per song that has been cut
TOKENS = "tokens"  # what a training reads: codes and text states
GENERATED = "generated.jsonl"  # one line per clip that `generate` wrote into this folder
