"""Captions that the text encoder reads only in part: too long for it, or in letters that it does not know."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.model.text import MAX_CAPTION_TOKENS, is_too_long

Fault = Literal["too long", "unknown letters"]

UNKNOWN_SHARE = 0.2  # of a caption's letters; fewer are a name or a sign
NAMED_SONGS = 3  # in a note
FAULTS: Mapping[Fault, str] = {
    "too long": f"longer than the {MAX_CAPTION_TOKENS} tokens that the text encoder reads, and are cut there",
    "unknown letters": "largely in letters that the text encoder does not know",
}


def caption_faults(captions: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Fault]:
    """The captions that are read only in part, each with its fault."""
    faults: dict[str, Fault] = {}
    for caption in dict.fromkeys(captions):
        if is_too_long(tokenizer, caption):
            faults[caption] = "too long"
        elif unknown_share(tokenizer, caption) >= UNKNOWN_SHARE:
            faults[caption] = "unknown letters"
    return faults


def unknown_share(tokenizer: PreTrainedTokenizerBase, caption: str) -> float:
    """The share of a caption's letters and pictographs that the tokenizer does not know; 0 where it has none.

    T5 has no byte fallback: one unknown token replaces a run of unknown letters, so letters are counted, not tokens.
    """
    ids = tokenizer(caption, truncation=False, verbose=False)["input_ids"]
    written = _letters(caption)
    unknown = written - _letters(tokenizer.decode(ids, skip_special_tokens=True))
    return unknown.total() / written.total() if written else 0.0


def _letters(text: str) -> Counter[str]:
    """Counts of letters and pictographs, normalised as SentencePiece does (NFKC)."""
    normal = unicodedata.normalize("NFKC", text)
    return Counter(letter for letter in normal if letter.isalpha() or unicodedata.category(letter) == "So")


def caption_notes(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """One note for each fault in the captions of clip rows (`source`, `text`, `variants`), with the first songs."""
    captions_of: dict[str, list[str]] = {}
    for row in rows:
        captions_of.setdefault(row["source"], []).extend([row["text"], *row["variants"]])
    faults = caption_faults((caption for captions in captions_of.values() for caption in captions), tokenizer)
    notes = []
    for fault, meaning in FAULTS.items():
        songs = [song for song, captions in captions_of.items() if fault in map(faults.get, captions)]
        if songs:
            names = ", ".join(songs[:NAMED_SONGS]) + (", …" if len(songs) > NAMED_SONGS else "")
            notes.append(f"note: captions of {plural(len(songs), 'song')} are {meaning}: {names}")
    return notes
