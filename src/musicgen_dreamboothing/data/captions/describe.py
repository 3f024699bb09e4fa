"""Describes clips: tags by CLAP, words of an audio language model, and captions of all that is known.

What was heard in a clip is kept in `heard.jsonl` by the clip's bytes, so that nothing is listened to twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, log, progress_bar
from musicgen_dreamboothing.data.captions.templates import Heard, captions
from musicgen_dreamboothing.data.layout import CLIPS
from musicgen_dreamboothing.data.songs.cutting import SongRecord
from musicgen_dreamboothing.data.songs.file_tags import file_tags
from musicgen_dreamboothing.data.songs.song import Song
from musicgen_dreamboothing.device import release_memory
from musicgen_dreamboothing.files import digest, write_json_lines

HEARD = "heard.jsonl"
PARTS = "heard-*.jsonl"  # of each process, while it listens
AT_ONCE = 16  # clips in memory
SINGS, IS_SILENT = 0.8, 0.2  # probabilities from which a voice is called there, or not there

Batch = Sequence[tuple[Wave, int]]
Key = tuple[str, str, str]  # of a line of `heard.jsonl`: digest of the clip, column, signature of the model


@dataclass(frozen=True)
class Describing:
    """How clips are described.

    Attributes:
        captions: `own` takes what a person gave, `measured` what is heard, `own+measured` puts this behind that.
        variants: captions of each clip.
        file_tags: what is believed of the tags in the songs' files: some of genre, bpm, key and comment.
        clap: CLAP model.
        labels: folder with lists of labels; None takes ours.
        captioner: audio language model, or None.
        class_prompt: noun behind the instance prompt.
        cache_dir, token: for the Hub.
    """

    captions: str = "own+measured"
    variants: int = 4
    file_tags: tuple[str, ...] = ()
    clap: str = "laion/larger_clap_music"
    labels: Path | None = None
    captioner: str | None = None
    class_prompt: str | None = None
    cache_dir: str | None = None
    token: str | None = None


@dataclass
class Description:
    """Of one clip: what is heard, and its captions, the usual one first."""

    heard: Heard
    captions: list[str] = field(default_factory=list)

    def columns(self) -> dict[str, Any]:
        """What stands in the metadata besides the caption."""
        tags = {name: getattr(self.heard, name) for name in ("genres", "moods", "instruments", "vocals")}
        return {"tempo": self.heard.tempo, "key": self.heard.key, "tags": tags, "variants": self.captions[1:]}


def describe_clips(
    folder: Path,
    rate: int,
    songs: list[Song],
    records: list[SongRecord],
    instance_prompt: str | None,
    describing: Describing,
) -> dict[str, Description]:
    """A description of every clip by its file name; under `accelerate launch` the processes share the listening."""
    names = [clip["file_name"] for record in records for clip in record.clips]
    impressions = _impressions(folder, rate, names, describing)
    found = {}
    for song, record in zip(songs, records, strict=True):
        own = _own_tags(song, describing) if record.clips else {}
        for clip in record.clips:
            heard = _heard(clip, impressions.get(clip["file_name"], {}), own)
            words = None if describing.captions == "measured" else song.caption
            words = words or impressions.get(clip["file_name"], {}).get("caption")
            shown = Heard() if describing.captions == "own" else heard
            written = captions(
                shown,
                instance_prompt=instance_prompt,
                class_prompt=describing.class_prompt,
                own=words,
                seed=_seed(clip["file_name"]),
                variants=describing.variants,
            )
            found[clip["file_name"]] = Description(heard, written)
    _say_if_untagged(describing.clap, [heard["tags"] for heard in impressions.values() if "tags" in heard])
    return found


def _say_if_untagged(clap: str, tags: Sequence[Mapping[str, Any]]) -> None:
    from musicgen_dreamboothing.pretrained.clap import GROUPS, another_clap

    if tags and not any(heard[group] for heard in tags for group in GROUPS):
        log(f"{clap} found no tag that fits any clip; {another_clap(clap)} may hear more")


def _heard(clip: Mapping[str, Any], impression: Mapping[str, Any], own: Mapping[str, Any]) -> Heard:
    return Heard.from_dict(
        {"tempo": clip.get("tempo"), "key": clip.get("key"), "own": dict(own), **impression.get("tags", {})}
    )


def _own_tags(song: Song, describing: Describing) -> dict[str, Any]:
    """What the song's file says of itself, as far as it is asked for."""
    if not describing.file_tags:
        return {}
    tags = asdict(file_tags((song.original or song.read)()))
    return {name: tags[name] for name in describing.file_tags if tags[name]}


def _seed(file_name: str) -> int:
    """The same in every process and at every time."""
    return int.from_bytes(hashlib.blake2b(file_name.encode(), digest_size=4).digest(), "little")


@dataclass(frozen=True)
class _Listener:
    """Fills one column of `heard.jsonl`.

    Attributes:
        column: its name.
        signature: what its content depends on besides the clip.
        start: loads the model, and gives its name with the commit, and what turns waves into the column.
    """

    column: str
    signature: str
    start: Callable[[], tuple[str, Callable[[Batch], Sequence[Any]]]]

    def key(self, digest: str) -> Key:
        """Of the line of a clip."""
        return digest, self.column, self.signature


def _impressions(folder: Path, rate: int, names: list[str], describing: Describing) -> dict[str, dict[str, Any]]:
    """What the models that are asked for hear in each clip, from `heard.jsonl` as far as it stands there."""
    state, known = PartialState(), _read_lines(folder)
    digests = {name: digest(folder / CLIPS / name) for name in names}
    listeners = _listeners(describing)
    state.wait_for_everyone()  # all have read before one of them writes
    for listener in listeners:
        missing = list({one: name for name, one in digests.items() if listener.key(one) not in known}.values())
        _listen(folder, rate, missing[state.process_index :: state.num_processes], digests, listener)
    state.wait_for_everyone()
    known = _read_lines(folder)
    state.wait_for_everyone()
    if state.is_main_process and (parts := list(folder.glob(PARTS))):
        write_json_lines(folder / HEARD, known.values())
        for part in parts:
            part.unlink()
    return {
        name: {
            listener.column: known[listener.key(one)]["found"] for listener in listeners if listener.key(one) in known
        }
        for name, one in digests.items()
    }


def _read_lines(folder: Path) -> dict[Key, dict[str, Any]]:
    """All lines, also those of other models and of clips that this run leaves out; one may be torn by a kill."""
    lines = {}
    for path in (folder / HEARD, *sorted(folder.glob(PARTS))):
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
            try:
                row = json.loads(line)
                if "found" in row:
                    lines[row["digest"], row["column"], row["by"]] = row
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return lines


def _listeners(describing: Describing) -> list[_Listener]:
    from musicgen_dreamboothing.pretrained.captioner import Captioner, captioner_signature
    from musicgen_dreamboothing.pretrained.clap import load_tagger, read_labels, tagger_signature

    labels = read_labels(describing.labels)
    hub: dict[str, Any] = {"cache_dir": describing.cache_dir, "token": describing.token}

    def clap() -> tuple[str, Callable[[Batch], Sequence[Any]]]:
        tagger = load_tagger(describing.clap, labels, device=PartialState().device, **hub)
        return tagger.name, lambda waves: _tags(tagger, waves)

    by = f"{tagger_signature(describing.clap, labels)}-{SINGS}-{IS_SILENT}"
    listeners = [_Listener("tags", by, clap)]
    if (model := describing.captioner) is not None:

        def captioner() -> tuple[str, Callable[[Batch], Sequence[Any]]]:
            loaded = Captioner(model, device=PartialState().device, **hub)
            return loaded.name, loaded.caption

        listeners.append(_Listener("caption", captioner_signature(model), captioner))
    return listeners


def _tags(tagger: Any, waves: Batch) -> list[dict[str, Any]]:
    embedded = tagger.embed(waves)
    return [
        {name: [tag.label for tag in tags] for name, tags in groups.items()} | {"vocals": _voice(chance)}
        for groups, chance in zip(tagger.tags(embedded), tagger.vocals(embedded), strict=True)
    ]


def _voice(chance: float) -> bool | None:
    if IS_SILENT < chance < SINGS:
        return None
    return chance >= SINGS


def _listen(folder: Path, rate: int, names: list[str], digests: Mapping[str, str], listener: _Listener) -> None:
    """Appends what is heard in clips; without a CLAP the captions say less, and a person is told."""
    if not names:
        return
    try:
        model, listen = listener.start()
    except UserError as error:
        if listener.column != "tags":
            raise
        log(f"{error}; without it captions say what can be measured")
        return
    state = PartialState()
    pending = iter(
        progress_bar(names, unit="clip", desc=f"listening: {listener.column}", disable=not state.is_main_process)
    )
    with (folder / PARTS.replace("*", str(state.process_index))).open("a", encoding="utf-8") as journal:
        journal.write("\n")  # behind a line that a kill tore
        while batch := list(islice(pending, AT_ONCE)):
            found = listen([(audio.decode(folder / CLIPS / name, rate), rate) for name in batch])
            for name, heard in zip(batch, found, strict=True):
                line = {"digest": digests[name], "column": listener.column, "by": listener.signature, "found": heard}
                line["model"] = model
                journal.write(json.dumps(line, ensure_ascii=False) + "\n")
            journal.flush()
    del listen
    release_memory()
