"""Makes a tiny melody checkpoint from the tiny text checkpoint: random tunes, and a training that follows them.

    python tools/tiny/make_melody.py WORK                 # about 20 minutes on one core
    python tools/tiny/make_melody.py WORK --trainings 1   # in ten, and worse

The tunes are sums of sine waves: single notes of the C major scale in a random order, so that nothing but the melody
tells which note comes next. WORK/checkpoint is the result: weights of the decoder in fp16, codec and text encoder
those of the text checkpoint. Same seed, same result; a call that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import MusicgenMelodyConfig, MusicgenMelodyDecoderConfig, MusicgenMelodyForConditionalGeneration

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.cli import main as command
from musicgen_dreamboothing.data.tokens.melodies import frame_rate_of
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint, load_whole, save_processor
from musicgen_dreamboothing.model.chroma import HOP, SAMPLING_RATE

BASE = Path(__file__).parents[2] / "src" / "musicgen_dreamboothing" / "assets" / "musicgen-tiny"
SETTINGS = Path(__file__).with_name("melody.yaml")
SECONDS, RATE, FRAME = 2.56, 16_000, 0.04  # of a tune; of the codec; a codec frame in seconds
C_MAJOR = (0, 2, 4, 5, 7, 9, 11)  # classes that the codec knows from its training
MIDDLE_C = 261.63  # Hz
DECODER = (  # what both families have in common
    *("vocab_size", "max_position_embeddings", "num_hidden_layers", "ffn_dim", "num_attention_heads", "hidden_size"),
    *("activation_function", "num_codebooks", "audio_channels", "pad_token_id", "bos_token_id", "scale_embedding"),
)


@dataclass(frozen=True)
class Timbre:
    """An instrument: its word in captions, levels of its partials, and how fast a note decays, per second."""

    word: str
    partials: tuple[float, ...]
    decay: float


TIMBRES = (
    Timbre("recorder", (1.0, 0.3), 0.5),
    Timbre("organ", (1.0, 0.6, 0.5, 0.4, 0.3), 0.3),
    Timbre("marimba", (1.0, 0.1, 0.1, 0.3), 4.0),
    Timbre("clarinet", (1.0, 0.05, 0.6, 0.05, 0.3), 0.5),
)
NOTE_FRAMES = {94: 16, 125: 12, 188: 8}  # beats per minute -> a note in codec frames


def tune(rng: np.random.Generator, timbre: Timbre, frames: int) -> np.ndarray:
    """Notes of one length `[S]`, each of another class than the one before, with a bass an octave below."""
    samples = round(frames * FRAME * RATE)
    time, notes, last = np.arange(samples) / RATE, list[np.ndarray](), -1
    envelope = np.exp(-timbre.decay * time) * np.minimum(1, time / 0.01) * np.minimum(1, (time[-1] - time) / 0.02)
    while len(notes) * samples < SECONDS * RATE:
        last = int(rng.choice([one for one in C_MAJOR if one != last]))
        pitch = MIDDLE_C * 2 ** (last / 12)
        wave = 0.6 * np.sin(np.pi * pitch * time)
        for number, level in enumerate(timbre.partials, start=1):
            wave += level * np.sin(2 * np.pi * number * pitch * time)
        notes.append(wave * envelope)
    return (0.2 * np.concatenate(notes)[: round(SECONDS * RATE)]).astype(np.float32)


def caption(timbre: Timbre, bpm: int) -> str:
    """The caption of a tune."""
    return f"{timbre.word} at {bpm} bpm"


def write_tunes(folder: Path, number: int, seed: int, timbres: Sequence[Timbre] = TIMBRES) -> None:
    """Tunes of these instruments in turns, each with its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        rng = np.random.default_rng([seed, index])
        timbre, bpm = timbres[index % len(timbres)], list(NOTE_FRAMES)[index // len(timbres) % len(NOTE_FRAMES)]
        path = folder / f"{timbre.word}_{bpm}_{index:04d}.flac"
        if not path.with_suffix(".txt").exists():
            audio.write(path, tune(rng, timbre, NOTE_FRAMES[bpm])[None], RATE)
            path.with_suffix(".txt").write_text(caption(timbre, bpm) + "\n")


def untrained(base: Checkpoint, folder: Path, seed: int) -> None:
    """Writes a melody checkpoint with the weights of a text checkpoint.

    Embeddings, self-attention, feed-forward layers and heads are copied; cross-attention is left out, as captions come
    before the codes. The projection of the chroma is new: its rows are as long as the sum of the codes' embeddings.
    """
    text = load_whole(base)
    decoder = MusicgenMelodyDecoderConfig(
        **{name: getattr(text.config.decoder, name) for name in DECODER}, dropout=0.0, attention_dropout=0.0
    )
    frames = int(SECONDS * SAMPLING_RATE / HOP) + 1
    torch.manual_seed(seed)
    model = MusicgenMelodyForConditionalGeneration(
        MusicgenMelodyConfig(
            text_encoder=text.config.text_encoder,
            audio_encoder=text.config.audio_encoder,
            decoder=decoder,
            chroma_length=frames,
        )
    )
    names = model.state_dict().keys()
    copied = {name: weight for name, weight in text.state_dict().items() if name in names}
    missing = model.load_state_dict(copied, strict=False).missing_keys
    assert set(missing) == {"audio_enc_to_dec_proj.weight", "audio_enc_to_dec_proj.bias"}, missing
    embeddings = [copied[name] for name in copied if "embed_tokens" in name]
    spread = float(sum(table.var() for table in embeddings)) ** 0.5
    torch.nn.init.normal_(model.audio_enc_to_dec_proj.weight, std=spread)
    torch.nn.init.zeros_(model.audio_enc_to_dec_proj.bias)
    model.generation_config = text.generation_config
    model.save_pretrained(folder)
    save_processor(base, folder)


def export(run: Path, folder: Path) -> None:
    """Writes the trained checkpoint in fp16, with tokenizer and processor."""
    model = MusicgenMelodyForConditionalGeneration.from_pretrained(run, dtype=torch.float16)
    model.config.audio_encoder._name_or_path = ""  # a folder of the machine it was made on
    model.save_pretrained(folder)
    save_processor(load_checkpoint(Source(str(run))), folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")


def make(folder: Path, *, tunes: int = 1000, trainings: int = 2, steps: int | None = None, seed: int = 0) -> Path:
    """All steps; returns the folder of the checkpoint."""
    result = folder / "checkpoint"
    if (result / "config.json").exists():
        return result
    start, base = folder / "start", load_checkpoint(Source(str(BASE)))
    assert frame_rate_of(base) * FRAME == 1
    if not (start / "config.json").exists():
        untrained(base, start, seed)
    write_tunes(folder / "tunes", tunes, seed)
    for number in range(1, trainings + 1):  # each with the schedule of melody.yaml
        run = folder / f"run-{number}"
        options = ["--dataset_name", str(folder / "tunes"), "--prepared_dir", str(folder / "prepared")]
        options += ["--model_name_or_path", str(start), "--output_dir", str(run), "--seed", str(seed + number - 1)]
        options += ["--max_steps", str(steps)] if steps else []
        if command(["train", str(SETTINGS), *options]):
            raise SystemExit(f"the training in {run} failed; see above")
        start = run
    export(start, result)
    return result


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything is written")
    parser.add_argument("--tunes", type=int, default=1000)
    parser.add_argument("--trainings", type=int, default=2, help="one after the other")
    parser.add_argument("--steps", type=int, help="updates of each; by default those of melody.yaml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.folder, tunes=options.tunes, trainings=options.trainings, steps=options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
