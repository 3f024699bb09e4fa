"""Names of files and folders that several stages share."""

from __future__ import annotations

from pathlib import Path

CLIPS = "clips"  # the clips, with their metadata
METADATA = "metadata.jsonl"  # in `CLIPS`: one line per clip, edited by people
SONGS = "songs.jsonl"  # one line per song that has been cut
TOKENS = "tokens"  # what a training reads: codes and text states
GENERATED = "generated.jsonl"  # one line per clip that `generate` wrote into this folder


def is_prepared(folder: Path) -> bool:
    """Whether a folder was made by `prepare` (or has clips and a metadata file in the same places)."""
    return (folder / CLIPS / METADATA).is_file()
