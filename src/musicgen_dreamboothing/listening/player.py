"""Waves for a page that needs nothing beside it: sound and pictures as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from musicgen_dreamboothing.audio import Wave, resample

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FINE, COARSE = 0.3, 0.7  # libsndfile's compression: some 80 and 50 kbit/s a channel


def mp3(wave: Wave, rate: int, compression: float) -> str:
    """`[C, S]` as a data URI that every browser plays."""
    playable = rate if rate in MP3_RATES else 32_000
    wave, memory = np.clip(resample(wave, rate, playable), -1, 1), io.BytesIO()
    with soundfile.SoundFile(
        memory, "w", playable, len(wave), "MPEG_LAYER_III", format="MP3",
        compression_level=compression, bitrate_mode="VARIABLE",
    ) as file:  # fmt: skip
        file.write(wave.T)
    return data_uri("audio/mpeg", memory.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Bytes of a media type, as the address of what stands in the page itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
