"""`--save_embeddings`: sounds and embeddings of an evaluation in the layout that fadtk and kadtk read.

    FOLDER/embeddings.json                           what the files are
    FOLDER/SET/NAME.wav                              the sounds of a set: base, tuned, songs or held_out
    FOLDER/SET/embeddings/MODEL/NAME.npy             its embedding, [1, D], of this project's MODEL
    FOLDER/SET/stats/MODEL/mu.npy, cov.npy           fadtk's cache of a set's mean and covariance

Both tools compute and store their own embeddings of the sounds under their own names of models, e.g.
`fadtk clap-laion-music FOLDER/songs FOLDER/tuned`. The statistics are written because fadtk 1.1.0 would compute them
from the covariance of each file, which is NaN for a single vector.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.files import write_json

LISTING = "embeddings.json"
SETS = ("base", "tuned", "songs", "held_out")

Array = NDArray[np.float64]


def embeddings_folder(option: str | None, report: Path) -> Path | None:
    """The folder of `--save_embeddings`: a name, `true` for one beside the report, None or `false` for none."""
    if option is None or option.lower() == "false":
        return None
    return report / "embeddings" if option.lower() == "true" else Path(option).expanduser()


def check_folder(folder: Path) -> None:
    """Refuses a folder with other files: its sets are replaced, and both tools read every file in a set.

    Raises:
        UserError: there is something else in it.
    """
    if folder.exists() and not (folder / LISTING).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--save_embeddings {folder} holds other files; choose a folder that is new or empty")


def save_embeddings(folder: Path, data: EvaluationData) -> None:
    """Writes sounds and embeddings of all sets; those of an earlier evaluation are replaced."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / LISTING, {})  # first: what an interrupted call leaves can be replaced
    model = model_name(data.embedder.name)
    names = {
        name: _save_set(folder / name, model, vectors, *_sounds(data, name))
        for name in SETS
        if (vectors := getattr(data.vectors, name)) is not None
    }
    write_json(folder / LISTING, {"embedding": data.embedder.name, "model": model, "sets": names})


def model_name(embedder: str) -> str:
    """The folder of an embedding: `larger_clap_music` of `CLAP laion/larger_clap_music`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", embedder.rpartition("/")[2]).strip("-.") or "embedding"


def _sounds(data: EvaluationData, name: str) -> tuple[list[tuple[Wave, int]], list[str]]:
    """The sounds of a set, and what each of them is: prompt and variation, or a song."""
    if name in ("base", "tuned"):
        clips = getattr(data, name)
        return [(clip.wave, clip.rate) for clip in clips], [f"{clip.prompt} #{clip.variation}" for clip in clips]
    excerpts = getattr(data, name)
    return excerpts.waves, excerpts.songs


def _save_set(
    folder: Path, model: str, vectors: Array, sounds: list[tuple[Wave, int]], titles: list[str]
) -> dict[str, str]:
    """Writes one set anew and returns the title of each file."""
    shutil.rmtree(folder, ignore_errors=True)
    cache = folder / "embeddings" / model
    cache.mkdir(parents=True)
    names = {}
    for number, (vector, (wave, rate), title) in enumerate(zip(vectors, sounds, titles, strict=True)):
        path = folder / f"{number:05d}.wav"
        audio.write(path, wave, rate)
        np.save(cache / f"{path.stem}.npy", vector[None])
        names[path.name] = title
    if len(vectors) > 1:
        stats = folder / "stats" / model
        stats.mkdir(parents=True)
        np.save(stats / "mu.npy", vectors.mean(axis=0))
        np.save(stats / "cov.npy", np.cov(vectors, rowvar=False))
    return names
