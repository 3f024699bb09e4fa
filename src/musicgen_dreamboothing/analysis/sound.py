"""Measurements of one clip as plain values for JSON. Worker processes load this module, so it imports nothing heavy."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.analysis.duplicates import Fingerprint, fingerprint
from musicgen_dreamboothing.analysis.loudness import loudness, peak
from musicgen_dreamboothing.audio import AudioError, Wave

STRIP_RATE = 2  # levels a second, to draw a song
LEAST_DB = -120.0  # dBFS, for a peak of 0


@dataclass(frozen=True)
class Sound:
    """The measurements of one clip."""

    seconds: float  # its length
    lufs: float | None  # integrated loudness, None where it has none (see `loudness`)
    peak_db: float  # dBFS
    clipping: float  # share of samples at the ceiling
    silence: float  # share of the time
    offset: float  # from 0, as a share of full scale
    channels: defects.Channels  # how its sides belong together
    bandwidth: float  # Hz, where the spectrum falls off a cliff, or half the rate
    damage: str | None  # what of the file could not be decoded
    strip: list[float]  # RMS levels, linear, two a second
    fingerprint: str  # see `duplicates`; in base64

    def words(self) -> Fingerprint:
        """The fingerprint for `find_duplicates`."""
        return np.frombuffer(base64.b64decode(self.fingerprint), "<u4").astype(np.uint32)


def measure_file(path: Path, rate: int) -> Sound | str:
    """The measurements of a file, or why it cannot be read."""
    damages: list[str] = []
    try:
        wave = audio.decode(path, rate, name=path.name, on_damage=damages.append)
    except AudioError as error:
        return str(error)
    return measure(wave, rate, damages[0] if damages else None)


def measure(wave: Wave, rate: int, damage: str | None = None) -> Sound:
    """The measurements of `[C, S]`."""
    lufs = loudness(wave, rate)
    return Sound(
        seconds=round(wave.shape[1] / rate, 3),
        lufs=round(lufs, 2) if math.isfinite(lufs) else None,
        peak_db=round(20 * math.log10(max(peak(wave), 10 ** (LEAST_DB / 20))), 2),
        clipping=round(defects.clipping(wave), 6),
        silence=round(defects.silence(wave, rate), 4),
        offset=round(defects.offset(wave), 5),
        channels=defects.channels(wave),
        bandwidth=round(defects.bandwidth(wave, rate)),
        damage=damage,
        strip=_strip(wave, rate),
        fingerprint=base64.b64encode(fingerprint(wave, rate).astype("<u4").tobytes()).decode("ascii"),
    )


def _strip(wave: Wave, rate: int) -> list[float]:
    places = range(0, wave.shape[1], max(1, rate // STRIP_RATE))
    power = np.add.reduceat(np.square(wave, dtype=np.float64).mean(axis=0), places)
    return [round(float(level), 4) for level in np.sqrt(power / np.diff([*places, wave.shape[1]]))]
