"""Describes clips: tags by CLAP, sentences of an audio language model, and captions made of all that is known.

Outputs of models are stored in `heard.jsonl`, keyed by the clip's bytes, so that no clip is processed twice.
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
from musicgen_dreamboothing.data.captions.templates import ClipFacts, captions
from musicgen_dreamboothing.data.layout import CLIPS
from musicgen_dreamboothing.data.songs.cutting import SongRecord
from musicgen_dreamboothing.data.songs.file_tags import file_tags
from musicgen_dreamboothing.data.songs.song import Song
from musicgen_dreamboothing.device import release_memory
from musicgen_dreamboothing.files import digest, write_json_lines

FACTS_FILE = "heard.jsonl"
PART_FILES = "heard-*.jsonl"  # one for each process while it works
CLIPS_IN_MEMORY = 16
VOCALS_FROM, NO_VOCALS_UP_TO = 0.8, 0.2  # probabilities; between them it is unknown

Batch = Sequence[tuple[Wave, int]]
Annotate = Callable[[Batch], Sequence[Any]]
Key = tuple[str, str, str]  # of a line of `heard.jsonl`: digest of the clip, column, signature of the model


@dataclass(frozen=True)
class DescribeSettings:
    """How clips are described."""

    # `own` takes the song's caption, `measured` the facts, `own+measured` the caption and then the facts
    captions: str = "own+measured"
    variants: int = 4  # captions of each clip
    file_tags: tuple[str, ...] = ()  # tags of the songs' files to use: some of genre, bpm, key and comment
    clap: str = "laion/larger_clap_music"  # CLAP model
    labels: Path | None = None  # folder with lists of labels; None takes the built-in ones
    captioner: str | None = None  # audio language model, or None
    class_prompt: str | None = None  # noun behind the instance prompt
    cache_dir: str | None = None  # for the Hub
    token: str | None = None


@dataclass
class Description:
    """The facts about one clip and its captions, the default one first."""

    facts: ClipFacts
    captions: list[str] = field(default_factory=list)

    def columns(self) -> dict[str, Any]:
        """Columns of the metadata besides the caption."""
        tags = {name: getattr(self.facts, name) for name in ("genres", "moods", "instruments", "vocals")}
        return {"tempo": self.facts.tempo, "key": self.facts.key, "tags": tags, "variants": self.captions[1:]}


def describe_clips(
    folder: Path,
    rate: int,
    songs: list[Song],
    records: list[SongRecord],
    instance_prompt: str | None,
    settings: DescribeSettings,
) -> dict[str, Description]:
    """A description of every clip by its file name; under `accelerate launch` the processes share the clips."""
    names = [clip["file_name"] for record in records for clip in record.clips]
    annotations = _annotations(folder, rate, names, settings)
    descriptions = {}
    for song, record in zip(songs, records, strict=True):
        own_tags = _own_tags(song, settings.file_tags) if record.clips else {}
        for clip in record.clips:
            name = clip["file_name"]
            annotation = annotations.get(name, {})
            facts = ClipFacts.from_dict(
                {"tempo": clip.get("tempo"), "key": clip.get("key"), "own": own_tags, **annotation.get("tags", {})}
            )
            caption = None if settings.captions == "measured" else song.caption
            texts = captions(
                ClipFacts() if settings.captions == "own" else facts,
                instance_prompt=instance_prompt,
                class_prompt=settings.class_prompt,
                own=caption or annotation.get("caption"),
                seed=int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little"),
                variants=settings.variants,
            )
            descriptions[name] = Description(facts, texts)
    _note_untagged(settings.clap, [annotation["tags"] for annotation in annotations.values() if "tags" in annotation])
    return descriptions


def _note_untagged(clap: str, tags: Sequence[Mapping[str, Any]]) -> None:
    from musicgen_dreamboothing.pretrained.clap import GROUPS, another_clap

    if tags and not any(groups[name] for groups in tags for name in GROUPS):
        log(f"note: {clap} gave no clip any tag. Fix: try {another_clap(clap)}")


def _own_tags(song: Song, names: Sequence[str]) -> dict[str, Any]:
    """The tags in the song's file that are asked for."""
    if not names:
        return {}
    tags = asdict(file_tags((song.original or song.read)()))
    return {name: tags[name] for name in names if tags[name]}


@dataclass(frozen=True)
class _Annotator:
    """Fills one column of `heard.jsonl`."""

    column: str  # its name
    signature: str  # of everything besides the clip that the content depends on
    # loads the model; returns its name with the commit, and the function from waves to the column
    load: Callable[[], tuple[str, Annotate]]

    def key(self, digest: str) -> Key:
        """Of the line of a clip."""
        return digest, self.column, self.signature


def _annotations(folder: Path, rate: int, names: list[str], settings: DescribeSettings) -> dict[str, dict[str, Any]]:
    """The columns of each clip, from `heard.jsonl` as far as they are stored there."""
    state, known = PartialState(), _read_lines(folder)
    digests = {name: digest(folder / CLIPS / name) for name in names}
    annotators = _annotators(settings)
    state.wait_for_everyone()  # all have read before one of them writes
    for annotator in annotators:
        missing = list({one: name for name, one in digests.items() if annotator.key(one) not in known}.values())
        _annotate(folder, rate, missing[state.process_index :: state.num_processes], digests, annotator)
    state.wait_for_everyone()
    known = _read_lines(folder)
    state.wait_for_everyone()
    if state.is_main_process and (parts := list(folder.glob(PART_FILES))):
        write_json_lines(folder / FACTS_FILE, known.values())
        for part in parts:
            part.unlink()
    return {
        name: {
            annotator.column: known[annotator.key(one)]["found"]
            for annotator in annotators
            if annotator.key(one) in known
        }
        for name, one in digests.items()
    }


def _read_lines(folder: Path) -> dict[Key, dict[str, Any]]:
    """All lines, also of other models and of clips that this run leaves out; a kill may leave an incomplete one."""
    lines = {}
    for path in (folder / FACTS_FILE, *sorted(folder.glob(PART_FILES))):
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
            try:
                row = json.loads(line)
                if "found" in row:
                    lines[row["digest"], row["column"], row["by"]] = row
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return lines


def _annotators(settings: DescribeSettings) -> list[_Annotator]:
    from musicgen_dreamboothing.pretrained.captioner import Captioner, captioner_signature
    from musicgen_dreamboothing.pretrained.clap import load_tagger, read_labels, tagger_signature

    labels = read_labels(settings.labels)
    hub: dict[str, Any] = {"cache_dir": settings.cache_dir, "token": settings.token}

    def load_clap() -> tuple[str, Annotate]:
        tagger = load_tagger(settings.clap, labels, device=PartialState().device, **hub)
        return tagger.name, lambda waves: _tags(tagger, waves)

    def load_captioner() -> tuple[str, Annotate]:
        captioner = Captioner(settings.captioner or "", device=PartialState().device, **hub)
        return captioner.name, captioner.caption

    annotators = [_Annotator("tags", tagger_signature(settings.clap, labels), load_clap)]
    if settings.captioner is not None:
        annotators.append(_Annotator("caption", captioner_signature(settings.captioner), load_captioner))
    return annotators


def _tags(tagger: Any, waves: Batch) -> list[dict[str, Any]]:
    embeddings = tagger.embed(waves)
    return [
        {name: [tag.label for tag in tags] for name, tags in groups.items()} | {"vocals": _has_vocals(probability)}
        for groups, probability in zip(tagger.tags(embeddings), tagger.vocals(embeddings), strict=True)
    ]


def _has_vocals(probability: float) -> bool | None:
    return None if NO_VOCALS_UP_TO < probability < VOCALS_FROM else probability >= VOCALS_FROM


def _annotate(folder: Path, rate: int, names: list[str], digests: Mapping[str, str], annotator: _Annotator) -> None:
    """Appends the column of some clips to the file of this process; a missing CLAP is only noted."""
    if not names:
        return
    try:
        model, annotate = annotator.load()
    except UserError as error:
        if annotator.column != "tags":
            raise
        log(f"note: {error}. Captions have tempo and key only")
        return
    state = PartialState()
    bar = progress_bar(names, unit="clip", desc=annotator.column, disable=not state.is_main_process)
    pending = iter(bar)
    with (folder / PART_FILES.replace("*", str(state.process_index))).open("a", encoding="utf-8") as journal:
        journal.write("\n")  # behind a line that a kill tore
        while batch := list(islice(pending, CLIPS_IN_MEMORY)):
            values = annotate([(audio.decode(folder / CLIPS / name, rate), rate) for name in batch])
            for name, value in zip(batch, values, strict=True):
                line = {"digest": digests[name], "column": annotator.column, "by": annotator.signature, "found": value}
                journal.write(json.dumps(line | {"model": model}, ensure_ascii=False) + "\n")
            journal.flush()
    del annotate
    release_memory()
