"""Plays what music.py composes with FluidSynth and writes clips or songs, each with its caption beside it.

python tools/tiny/render.py --output_dir WORK/data   # train and valid, etudes beside: 8 s clips, 16 kHz mono
python tools/tiny/render.py --songs DIR           # the songs of the style that training never hears
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mido
import music
import numpy as np
import soundfile
import soxr
from tqdm import tqdm

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
APT = "sudo apt-get install -y --no-install-recommends fluidsynth fluid-soundfont-gm"
# One block of FluidSynth is 64 samples: 2 ms at 32 kHz, so 1 ms a MIDI tick keeps every event on an exact sample.
SYNTH_HZ, CLIP_HZ = 32_000, 16_000
TICKS_A_QUARTER = 500
LEAD_IN_MS, GAP_MS = 200, 1500
PIECES_A_FILE = 40
PROCESSES = 2
# One gain a style brings its RMS to about 0.12; measured once on 8 clips each, never on the clip itself.
GAIN = {"ballad": 1.9, "reggae": 1.71, "folk": 1.73, "house": 1.24, "techno": 1.28, "punk": 1.05}
PEAK = 0.95

SONGS = (
    "burnt toast",
    "flat tyre",
    "no refund",
    "last bus",
    "cheap shoes",
    "wet matches",
    "broken lift",
    "paper crown",
    "loud neighbour",
    "cold chips",
    "stolen bike",
    "dead battery",
    "wrong door",
    "rusty nail",
    "spilt milk",
    "empty fridge",
    "late again",
    "torn ticket",
    "bad haircut",
    "parking fine",
    "missing sock",
    "blown fuse",
    "sour grapes",
    "leaky tap",
)
VALIDATION_SONGS = 4

Target = tuple[Path, music.Piece]


def midi(pieces: Iterable[music.Piece]) -> tuple[mido.MidiFile, list[int]]:
    """One file with all pieces in a row, and where each begins in ms."""
    events: list[tuple[int, int, mido.Message]] = []
    starts, at = [], LEAD_IN_MS
    for piece in pieces:
        events += piece_events(piece, at)
        starts.append(at)
        at += round(piece.seconds * 1000) + GAP_MS
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=TICKS_A_QUARTER * 1000)])
    now = 0
    for time, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=time - now))
        now = time
    track.append(mido.MetaMessage("end_of_track", time=max(at - now, 0)))
    return mido.MidiFile(ticks_per_beat=TICKS_A_QUARTER, tracks=[track]), starts


def piece_events(piece: music.Piece, at: int) -> list[tuple[int, int, mido.Message]]:
    """(ms, rank, message): first instruments and volumes, then at equal times the ends of notes before new ones."""
    events = []
    for part in sorted({note.part for note in piece.notes}, key=lambda part: part.channel):
        setup = [mido.Message("program_change", channel=part.channel, program=part.program)]
        setup += [
            mido.Message("control_change", channel=part.channel, control=control, value=value)
            for control, value in ((7, part.volume), (10, 64), (91, 0), (93, 0))
        ]
        events += [(at - 100, 0, message) for message in setup]
        silence = mido.Message("control_change", channel=part.channel, control=120, value=0)
        events.append((at + round(piece.seconds * 1000) + GAP_MS - 300, 0, silence))
    for note in piece.notes:
        pitch = {"channel": note.part.channel, "note": note.pitch}
        events.append((at + note.start_ms, 2, mido.Message("note_on", velocity=note.velocity, **pitch)))
        events.append((at + note.start_ms + note.length_ms, 1, mido.Message("note_off", **pitch)))
    return events


def play(pieces: list[music.Piece]) -> list[np.ndarray]:
    """Each piece as [samples] at 16 kHz, mono, before its style's gain."""
    file, starts = midi(pieces)
    with tempfile.TemporaryDirectory() as folder:
        score, sound = Path(folder, "score.mid"), Path(folder, "sound.wav")
        file.save(score)
        options = ["-q", "-n", "-i", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(SYNTH_HZ), "-O", "float", "-T", "wav"]
        command = ["fluidsynth", *options, "-F", str(sound), str(SOUNDFONT), str(score)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not sound.is_file():
            sys.exit(f"fluidsynth failed ({done.returncode}): {done.stderr.strip()}")
        stereo, _ = soundfile.read(sound, dtype="float32")
    mono = stereo.mean(axis=1)
    return [resample(mono, start, piece.seconds) for start, piece in zip(starts, pieces, strict=True)]


def resample(sound: np.ndarray, start_ms: int, seconds: float) -> np.ndarray:
    """The stretch of a piece at 16 kHz; 100 ms more on each side while filtering, so that its edges are as inside."""
    margin = SYNTH_HZ // 10
    first = start_ms * SYNTH_HZ // 1000 - margin
    wide = sound[first : first + round(seconds * SYNTH_HZ) + 2 * margin]
    half = soxr.resample(wide, SYNTH_HZ, CLIP_HZ)[margin * CLIP_HZ // SYNTH_HZ :]
    return half[: round(seconds * CLIP_HZ)]


def write(path: Path, sound: np.ndarray, piece: music.Piece) -> bool:
    """The sound, then its caption, which says that the sound is whole. True if the peak had to be cut."""
    louder = sound * GAIN[piece.style]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(louder, -PEAK, PEAK), CLIP_HZ)
    path.with_suffix(".txt").write_text(piece.caption + "\n")
    return bool(np.abs(louder).max() > PEAK)


def is_written(target: Target) -> bool:
    """The caption is written last."""
    return target[0].is_file() and target[0].with_suffix(".txt").is_file()


def render(targets: list[Target], name: str) -> None:
    """Plays and writes what isn't there yet."""
    missing = [target for target in targets if not is_written(target)]
    groups = [missing[first : first + PIECES_A_FILE] for first in range(0, len(missing), PIECES_A_FILE)]

    def work(group: list[Target]) -> int:
        sounds = play([piece for _, piece in group])
        return sum(write(path, sound, piece) for (path, piece), sound in zip(group, sounds, strict=True))

    cut = 0
    with ThreadPoolExecutor(PROCESSES) as pool, tqdm(total=len(missing), desc=name, unit="clip") as bar:
        for group, cut_here in zip(groups, pool.map(work, groups), strict=True):
            bar.update(len(group))
            cut += cut_here
    if cut:
        print(f"{name}: {cut} of {len(missing)} were cut at a peak of {PEAK}")


def clips(folder: Path, number: int, seed: int, wanted: Callable[[music.Piece], bool]) -> list[Target]:
    """As many clips of each style and each of its tempi; `wanted` says which pieces belong to this set."""
    places = [(style, music.TEMPI[style][turn]) for turn in range(3) for style in music.STYLES]
    keys = list(music.KEYS)
    rng = random.Random(f"{folder.name} {seed}")
    targets = []
    for index in range(number):
        style, bpm = places[index % len(places)]
        key = keys[index // len(places) % len(keys)]
        piece = draw(rng, style, bpm, key, wanted)
        targets.append((folder / f"{style}_{bpm}_{index:05d}.flac", piece))
    return targets


def draw(rng: random.Random, style: str, bpm: int, key: str, wanted: Callable[[music.Piece], bool]) -> music.Piece:
    """The first piece of a row of seeds that belongs to the set."""
    while True:
        piece = music.compose(style, bpm, key, rng.randrange(2**32))
        if wanted(piece):
            return piece


def write_list(path: Path, targets: list[Target]) -> None:
    """One JSON object a line: file (relative to the list), style, bpm, key, caption."""
    rows = [
        {
            "file": str(file.relative_to(path.parent)),
            "style": piece.style,
            "bpm": piece.bpm,
            "key": piece.key,
            "caption": piece.caption,
        }
        for file, piece in targets
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def render_sets(folder: Path, number: int, valid: int, etudes: int, seed: int) -> None:
    """Train, validation and etudes."""
    check_same_music(folder, seed)
    sets = {
        "train": clips(folder / "train", number, seed, lambda piece: not music.is_valid(piece)),
        "valid": clips(folder / "valid", valid, seed, music.is_valid),
    }
    for name, targets in sets.items():
        delete_strays(folder / name, targets)
        render(targets, name)
        write_list(folder / f"{name}.jsonl", targets)
    render([etude(folder.resolve().parent / "etudes", seed, index) for index in range(etudes)], "etudes")


def check_same_music(folder: Path, seed: int) -> None:
    """Sounds that are there are kept, so they must be those of this seed and this composer."""
    code = b"".join(Path(source).read_bytes() for source in (music.__file__, __file__))
    now = json.dumps({"seed": seed, "code": hashlib.sha256(code).hexdigest()})
    note = folder / "music.json"
    if note.is_file() and note.read_text() != now:
        sys.exit(f"{folder} holds music of another seed or another composer; choose another --output_dir")
    if not note.is_file() and any((folder / name).exists() for name in ("train", "valid")):
        sys.exit(f"{folder} holds a train or valid folder that is not of this script; choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(now)


def delete_strays(folder: Path, targets: list[Target]) -> None:
    """Removes what an earlier call with more clips left."""
    wanted = {path.stem for path, _ in targets}
    for path in folder.glob("*.*"):
        if path.stem not in wanted:
            path.unlink()


def etude(folder: Path, seed: int, index: int) -> Target:
    """One of the codec's studies; no list says more of it than its caption."""
    piece = music.etude(seed * 100_000 + index)
    return folder / f"etude_{piece.style}_{index:05d}.flac", piece


def render_songs(folder: Path, seed: int) -> None:
    """The held-out style: the last songs of the book are for validation."""
    book = music.songbook(len(SONGS), seed)
    training = len(SONGS) - VALIDATION_SONGS
    targets = []
    for index, (title, piece) in enumerate(zip(SONGS, book, strict=True)):
        place = folder if index < training else folder / "validation"
        targets.append((place / f"{index + 1:02d}_{title.replace(' ', '_')}.ogg", piece))
    render(targets, "songs")


def check_tools() -> None:
    """FluidSynth and its sounds come from the system."""
    if shutil.which("fluidsynth") is None or not SOUNDFONT.is_file():
        sys.exit(f"fluidsynth or {SOUNDFONT} is missing. Install both: {APT}")


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output_dir", type=Path, help="folder for train and valid; the etudes go beside it")
    where.add_argument("--songs", type=Path, help="folder for the punk songs")
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--valid", type=int, default=160)
    parser.add_argument("--etudes", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_tools()
    if options.songs:
        render_songs(options.songs, options.seed)
    else:
        render_sets(options.output_dir, options.clips, options.valid, options.etudes, options.seed)


if __name__ == "__main__":
    main()
