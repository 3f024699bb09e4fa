"""Names of the files and folders of a prepared folder that several stages share."""

from __future__ import annotations

CLIPS = "clips"  # the clips, with their metadata
METADATA = "metadata.jsonl"  # in `CLIPS`: one line per clip, edited by people
SONGS = "songs.jsonl"  # one line per song that has been cut
TOKENS = "tokens"  # what a training reads: codes and text states
