"""Common parts of all HTML pages: the Jinja environment, sounds and spectrograms as data URIs."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from musicgen_dreamboothing.analysis.spectrum import spectra
from musicgen_dreamboothing.audio import Wave, resample, to_channels

WIDTH, HEIGHT = 640, 160  # pixels
WINDOW = 2048  # samples
LOWEST_HZ = 60.0
RANGE_DB = 70.0
PALETTE = ("#0b0d14", "#1d2545", "#2f5d7c", "#58a99a", "#d9c77a", "#fdf6df")  # from silence to the loudest
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FINE, COARSE = 0.3, 0.7  # libsndfile's compression: some 80 and 50 kbit/s a channel


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("musicgen_dreamboothing", "assets"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )


def render(template: str, **values: Any) -> str:
    """A page from a template in `assets/`; all values are escaped."""
    return _environment().get_template(template).render(**values)


def spectrogram(wave: Wave, rate: int, loudest: float | None = None) -> bytes:
    """A PNG of `[C, S]`, 640 x 160: time to the right, pitch upwards in equal intervals from 60 Hz to half the rate.

    `loudest` is the power that is brightest, so that two pictures can be compared; see `loudest_power`.
    """
    db = 10 * np.log10(_power(wave, rate) + 1e-12)
    top = max(10 * np.log10((loudest or loudest_power(wave)) + 1e-12), -90.0)  # silence stays dark
    shades = np.clip((db - top) / RANGE_DB + 1, 0, 1) * 255
    image = Image.fromarray(shades[::-1].astype(np.uint8))
    image.putpalette(_palette())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def loudest_power(wave: Wave) -> float:
    """The highest power of any frequency at any time; a sine at full scale has 1."""
    return max(float(np.square(block).max()) for block in spectra(to_channels(wave, 1)[0], WINDOW, WINDOW))


def _power(wave: Wave, rate: int) -> np.ndarray:
    """`[HEIGHT, WIDTH]`: the highest power of the frequencies that share a row, the lowest first."""
    mono = to_channels(wave, 1)[0]
    hop = max(1, -(-len(mono) // WIDTH))
    frames = np.concatenate(list(spectra(mono, WINDOW, hop)))[:WIDTH]
    edges = np.geomspace(LOWEST_HZ, rate / 2, HEIGHT + 1) * WINDOW / rate
    firsts = np.minimum(edges[:-1].astype(int), WINDOW // 2)
    return np.square(np.maximum.reduceat(np.ascontiguousarray(frames.T), firsts, axis=0))  # ten times as fast as by row


def _palette() -> list[int]:
    """256 colours, as red, green, blue, red, ..."""
    stops = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in PALETTE])
    places, steps = np.linspace(0, 1, len(stops)), np.linspace(0, 1, 256)
    colours = np.stack([np.interp(steps, places, channel) for channel in stops.T], axis=1)
    return [int(value) for value in colours.round().ravel()]


def mp3(wave: Wave, rate: int, compression: float) -> str:
    """`[C, S]` as an MP3 data URI."""
    playable = rate if rate in MP3_RATES else 32_000
    wave, memory = np.clip(resample(wave, rate, playable), -1, 1), io.BytesIO()
    with soundfile.SoundFile(
        memory, "w", playable, len(wave), "MPEG_LAYER_III", format="MP3",
        compression_level=compression, bitrate_mode="VARIABLE",
    ) as file:  # fmt: skip
        file.write(wave.T)
    return data_uri("audio/mpeg", memory.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
