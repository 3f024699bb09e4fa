"""Writes `clips/metadata.jsonl`: a caption for each clip, without touching what the user changed there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.data.captions.captions import with_instance_prompt
from musicgen_dreamboothing.data.captions.describe import Description
from musicgen_dreamboothing.data.layout import CLIPS, METADATA
from musicgen_dreamboothing.data.songs.clips import metadata_rows
from musicgen_dreamboothing.data.songs.cutting import SongRecord
from musicgen_dreamboothing.data.songs.song import MELODY_FILE, STEMS_FILE, Song
from musicgen_dreamboothing.files import write_json_lines, write_text

WRITTEN = "captions.json"  # captions as we wrote them, to tell a person's edits from ours
DESCRIBED = ("tempo", "key", "tags", "variants")  # columns of ours that stand only where clips are described


def update_metadata(
    folder: Path,
    songs: list[Song],
    records: list[SongRecord],
    instance_prompt: str | None,
    descriptions: Mapping[str, Description],
    class_prompt: str | None = None,
) -> int:
    """Brings `metadata.jsonl` up to date without touching what a person changed there.

    A caption that differs from the one we wrote is the person's and stays. A clip that we listed
    before and that is missing now was deleted by the person and stays away; a clip that the person
    added stays. Without the file all begins anew. Rows of songs that are only on record stay as they are.

    Returns:
        How many clips stay away.
    """
    path = folder / CLIPS / METADATA
    listed = metadata_rows(path) if path.exists() else []
    present = {row["file_name"]: row for row in listed if "file_name" in row}
    written = _written_captions(folder) if path.exists() else {}
    by_name = {song.name: song for song in songs}
    rows, fresh = list[dict[str, Any]](), dict[str, str]()
    for record in records:
        song = by_name.get(record.source)
        if song is None:
            names = [clip["file_name"] for clip in record.clips]
            rows += [present[name] for name in names if name in present]
            fresh |= {name: written[name] for name in names if name in written}
            continue
        plain = with_instance_prompt(instance_prompt, song.caption, class_prompt)
        for clip in record.clips:
            name = clip["file_name"]
            description = descriptions.get(name)
            fresh[name] = description.captions[0] if description else plain
            if name in written and name not in present:
                continue
            row = _row(clip, record, fresh[name], description, instance_prompt)
            edited = _without_lost_files(present.get(name, {}), folder / CLIPS)
            rows.append(_with_edits(row, edited, written.get(name)))
    ours = {clip["file_name"] for record in records for clip in record.clips}
    added = [row for name, row in present.items() if name not in written and name not in ours]
    write_json_lines(path, [*rows, *(row for row in added if os.path.isfile(folder / CLIPS / row["file_name"]))])
    write_text(folder / WRITTEN, json.dumps(fresh, ensure_ascii=False))
    return len(ours) - len(rows)


def _written_captions(folder: Path) -> dict[str, str]:
    path = folder / WRITTEN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _row(
    clip: dict[str, Any], record: SongRecord, caption: str, description: Description | None, instance_prompt: str | None
) -> dict[str, Any]:
    """One line of the metadata as we would write it."""
    return {
        "file_name": clip["file_name"],
        "text": caption,
        "instance_prompt": instance_prompt,
        "source": record.source,
        "split": record.split,
        "start": clip["start"],
        "seconds": clip["seconds"],
        **{column: clip[column] for column in (MELODY_FILE, STEMS_FILE) if column in clip},
    } | (description.columns() if description else {})


def _without_lost_files(row: dict[str, Any], clips: Path) -> dict[str, Any]:
    """Without melody files of earlier runs that are gone: other programs would not load the folder."""
    lost = [name for name in (MELODY_FILE, STEMS_FILE) if name in row and not (clips / str(row[name])).is_file()]
    return {key: value for key, value in row.items() if key not in lost}


def _with_edits(ours: dict[str, Any], present: dict[str, Any], written: str | None) -> dict[str, Any]:
    """Our line with the caption that a person wrote, which stands alone, and with the columns that a person added."""
    own = present.get("text")
    added = {key: value for key, value in present.items() if key not in ours and key not in DESCRIBED}
    if own is None or own == written:
        return ours | added
    return {key: value for key, value in ours.items() if key != "variants"} | {"text": str(own)} | added
