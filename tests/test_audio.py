"""Sound in and out: every container that can be made here is read back, and damaged ones are met halfway."""

from __future__ import annotations

import errno
import io
import itertools
import os
import re
import resource
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import AudioError, Wave, readers

RATE = 32_000
PITCH = 440.0


def sine(seconds: float, rate: int, channels: int = 1, hertz: float = PITCH) -> Wave:
    """`[C, S]`, amplitude 0.5."""
    times = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.5 * np.sin(2 * np.pi * hertz * times)[None], channels, axis=0).astype(np.float32)


def dominant(wave: Wave, rate: int) -> float:
    """The loudest frequency of the first channel, in Hz."""
    spectrum = np.abs(np.fft.rfft(wave[0] * np.hanning(wave.shape[1])))
    return float(spectrum.argmax() * rate / wave.shape[1])


def encode(codec: str, container: str, wave: Wave, rate: int, *, layout: str = "", pictures: bool = False) -> bytes:
    """A file made by libav, with a few black pictures beside the sound where wanted."""
    layout = layout or ("mono", "stereo")[len(wave) - 1]
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as file:
        video = file.add_stream("mpeg4", rate=5, width=32, height=32) if pictures else None
        track = file.add_stream(codec, rate=rate, layout=layout, bit_rate=128_000, options={"strict": "experimental"})
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T).reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        file.mux(track.encode(frame))
        file.mux(track.encode(None))
        if video:
            for picture in [av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))] * 3 + [None]:
                file.mux(video.encode(picture))
    return memory.getvalue()


def sound_file(wave: Wave, rate: int, container: str = "WAV", subtype: str | None = None) -> bytes:
    """A file made by libsndfile."""
    memory = io.BytesIO()
    soundfile.write(memory, wave.T, rate, format=container, subtype=subtype)
    return memory.getvalue()


@pytest.mark.parametrize(
    ("codec", "container", "rate", "pictures"),
    [
        ("libmp3lame", "mp3", 44_100, False),
        ("aac", "ipod", 44_100, False),
        ("aac", "adts", 44_100, False),
        ("alac", "ipod", 44_100, False),
        ("libopus", "ogg", 48_000, False),
        ("libopus", "webm", 48_000, False),
        ("flac", "flac", 44_100, False),
        ("pcm_s16le", "wav", 44_100, False),
        ("pcm_s16be", "aiff", 44_100, False),
        ("wmav2", "asf", 44_100, False),
        ("aac", "mp4", 44_100, True),
        ("aac", "matroska", 44_100, True),
    ],
)
def test_every_container_keeps_length_pitch_and_channels(codec, container, rate, pictures):
    for channels in (1, 2):
        content = encode(codec, container, sine(1.0, rate, channels), rate, pictures=pictures)
        damage: list[str] = []
        wave = audio.decode(content, RATE, on_damage=damage.append)
        assert wave.dtype == np.float32
        assert wave.shape[0] == channels
        assert wave.shape[1] / RATE == pytest.approx(1.0, abs=0.07)  # raw AAC and WMA do not state their padding
        assert dominant(wave, RATE) == pytest.approx(PITCH, abs=1.0)
        assert damage == []


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".wav"])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_reads_back(tmp_path, suffix, channels):
    wave = sine(1.5, RATE, channels)
    audio.write(tmp_path / f"tone{suffix}", wave, RATE)
    again = audio.decode(tmp_path / f"tone{suffix}", RATE)
    assert again.shape[0] == channels
    if suffix == ".ogg":  # libav counts a Vorbis file of a single page 128 samples too short
        assert abs(again.shape[1] - wave.shape[1]) <= 128
        assert dominant(again, RATE) == pytest.approx(PITCH, abs=1)
    else:
        np.testing.assert_allclose(again, wave, atol=2**-14)
    assert os.listdir(tmp_path) == [f"tone{suffix}"]


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(8_000, 48_000), (11_025, 32_000), (44_100, 8_000), (192_000, 32_000), (44_100, 48_000)]
)
def test_length_follows_the_rates(rate_in, rate_out):
    wave = sine(1.237, rate_in)
    decoded = audio.decode(sound_file(wave, rate_in), rate_out, name="tone.wav")
    assert abs(decoded.shape[1] - wave.shape[1] * rate_out / rate_in) <= 1
    assert dominant(decoded, rate_out) == pytest.approx(PITCH, abs=2)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_sample_formats_have_one_scale(subtype):
    wave = sine(0.2, RATE)
    decoded = audio.decode(sound_file(wave, RATE, subtype=subtype), RATE)
    np.testing.assert_allclose(decoded, wave, atol=1 / 100 if subtype == "PCM_U8" else 2**-14)


def test_samples_above_full_scale_are_kept():
    assert audio.decode(sound_file(4 * sine(0.2, RATE), RATE, subtype="FLOAT"), RATE).max() == pytest.approx(2.0, 1e-3)


def test_left_stays_left():
    wave = np.concatenate([sine(0.5, 44_100), np.zeros((1, 22_050), np.float32)])
    decoded = audio.decode(sound_file(wave, 44_100), RATE)
    assert np.abs(decoded[0]).max() > 0.4
    assert np.abs(decoded[1]).max() < 1e-3


@pytest.mark.parametrize("codec", ["flac", "aac", "libopus"])  # interleaved and planar frames
def test_surround_is_mixed_down(codec):
    wave = np.zeros((8, 48_000), np.float32)
    wave[0] = sine(1.0, 48_000)[0]  # FL
    wave[3] = sine(1.0, 48_000, hertz=3000)[0]  # LFE
    content = encode(codec, {"aac": "adts", "flac": "flac", "libopus": "ogg"}[codec], wave, 48_000, layout="7.1")
    left, right = audio.decode(content, 48_000)
    assert dominant(left[None], 48_000) == pytest.approx(PITCH, abs=1)
    assert np.abs(left).max() == pytest.approx(0.5 / (1 + 3 * 0.5**0.5), rel=0.2)
    assert np.abs(right).max() < 0.03


def test_eight_channels_without_places_are_all_mixed():
    wave = np.zeros((8, RATE), np.float32)
    wave[5] = sine(1.0, RATE)[0]
    decoded = audio.decode(sound_file(wave, RATE), RATE)
    assert decoded.shape == (2, RATE)
    np.testing.assert_array_equal(decoded[0], decoded[1])
    assert dominant(decoded, RATE) == pytest.approx(PITCH, abs=1)


def test_rate_and_channels_may_change_on_the_way():
    content = encode("aac", "adts", sine(1.0, 44_100, 2), 44_100) + encode("aac", "adts", sine(1.0, 22_050), 22_050)
    decoded = audio.decode(content, RATE)
    assert decoded.shape[0] == 2
    assert decoded.shape[1] / RATE == pytest.approx(2.0, abs=0.2)
    assert dominant(decoded[:, -RATE // 2 :], RATE) == pytest.approx(PITCH, abs=4)


def test_blocks_of_a_stream_make_the_whole():
    content = sound_file(sine(5.0, 44_100, 2, hertz=997), 44_100)
    pieces = list(audio.stream(content, RATE, block_seconds=0.7))
    assert len(pieces) > 5
    assert all(piece.flags.c_contiguous and piece.dtype == np.float32 for piece in pieces)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), audio.decode(content, RATE), atol=1e-6)


def test_decoding_repeats_itself(tmp_path):
    content = encode("libmp3lame", "mp3", sine(1.0, 44_100, 2), 44_100)
    (tmp_path / "tone.mp3").write_bytes(content)
    first = audio.decode(content, RATE)
    np.testing.assert_array_equal(first, audio.decode(tmp_path / "tone.mp3", RATE))
    np.testing.assert_array_equal(first, audio.decode(str(tmp_path / "tone.mp3"), RATE))


def test_memory_is_steady_over_twenty_minutes(tmp_path):
    path = tmp_path / "long.flac"
    audio.write(path, sine(20 * 60.0, 2_000), 2_000)
    tracemalloc.start()
    samples = longest = 0
    for block in audio.stream(path, 4_000):
        samples, longest = samples + block.shape[1], max(longest, block.shape[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == 20 * 60 * 4_000
    assert longest <= 11 * 4_000
    assert peak < 2_000_000  # bytes; the whole would be 19 million


@pytest.mark.parametrize("name", ["a: b.mp3", "tone — ü.mp3", "new\nline.mp3", os.fsdecode(b"not\xffutf8.mp3")])
def test_odd_file_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(encode("libmp3lame", "mp3", sine(0.5, 44_100), 44_100))
    assert audio.decode(name, RATE).shape[1] > RATE // 3


def test_tags_that_are_not_utf8():
    content = sound_file(sine(0.5, RATE), RATE)
    title = b"INFOINAM" + (6).to_bytes(4, "little") + b"caf\xe9\xff\0"
    tagged = content[:12] + b"LIST" + len(title).to_bytes(4, "little") + title + content[12:]
    assert audio.decode(tagged, RATE).shape == (1, RATE // 2)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_does_not_know_its_size(size):
    content = bytearray(sound_file(sine(0.5, RATE), RATE))
    start = content.index(b"data") + 4
    content[start : start + 4] = size.to_bytes(4, "little")
    damage: list[str] = []
    assert audio.decode(bytes(content), RATE, on_damage=damage.append).shape == (1, RATE // 2)
    assert damage == []


def one_line(error: pytest.ExceptionInfo[AudioError], name: str) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert name in message
    return message


def no_sound() -> dict[str, tuple[bytes, str]]:
    """Files without a sound in them, and what is said of each."""
    tone = sound_file(sine(0.5, RATE), RATE)
    unknown_codec = bytearray(tone)
    place = unknown_codec.index(b"fmt ") + 8
    unknown_codec[place : place + 2] = b"\x34\x12"
    mp4 = encode("aac", "mp4", sine(2.0, 44_100), 44_100, pictures=True)
    silent_film = io.BytesIO()
    with av.open(silent_film, "w", format="mp4") as file:
        film = file.add_stream("mpeg4", rate=5, width=32, height=32)
        for picture in [av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8)), None]:
            file.mux(film.encode(picture))
    return {
        "empty.mp3": (b"", "not a readable audio file"),
        "text.wav": (b"these are only words\n" * 500, "not a readable audio file"),
        "text.mp3": (b"these are only words\n" * 500, "not a readable audio file"),
        "playlist.m3u8": (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "not a readable"),
        "headless.mp4": (mp4[: len(mp4) // 2], "not a readable audio file"),
        "film.mp4": (silent_film.getvalue(), "has no sound track"),
        "nothing.wav": (sound_file(np.zeros((1, 0), np.float32), RATE), "holds no samples"),
        "nothing.flac": (sound_file(np.zeros((1, 0), np.float32), RATE, "FLAC"), "holds no samples"),
        "codec.wav": (bytes(unknown_codec), "nothing in it can be decoded"),
        "blink.wav": (sound_file(sine(0.00005, 192_000), 192_000), "shorter than one sample at 8000 Hz"),
    }


NO_SOUND = no_sound()


@pytest.mark.parametrize("name", list(NO_SOUND))
def test_a_file_without_sound_is_named(tmp_path, capfd, name):
    content, reason = NO_SOUND[name]
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, content):
        with pytest.raises(AudioError) as error:
            audio.decode(source, 8_000, name=name if isinstance(source, bytes) else None)
        assert reason in one_line(error, name)
    assert capfd.readouterr() == ("", "")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(AudioError, match="No such file") as error:
        audio.decode(tmp_path / "gone.mp3", RATE)
    one_line(error, "gone.mp3")
    with pytest.raises(AudioError, match="Is a directory") as error:
        audio.decode(tmp_path, RATE)
    one_line(error, tmp_path.name)


@pytest.mark.parametrize(("value", "channels"), [(np.nan, 1), (np.inf, 2), (-np.inf, 6), (1e300, 6), (np.nan, 6)])
def test_samples_must_be_finite(value, channels):
    wave = np.zeros((channels, RATE))
    wave[:, 1000] = value
    with pytest.raises(AudioError, match=r"bad\.wav: holds NaN or infinite samples"):
        audio.decode(sound_file(wave, RATE, subtype="DOUBLE"), RATE, name="bad.wav")


def test_half_an_mp3_gives_its_first_half(capfd):
    content = encode("libmp3lame", "mp3", sine(6.0, 44_100, 2), 44_100)
    damage: list[str] = []
    wave = audio.decode(content[: len(content) // 2], RATE, name="half.mp3", on_damage=damage.append)
    assert wave.shape[1] / RATE == pytest.approx(3.0, abs=0.2)
    assert dominant(wave, RATE) == pytest.approx(PITCH, abs=1)
    assert len(damage) == 1
    assert "half.mp3" in damage[0]
    assert "of the 6.0 s in its header" in damage[0]
    assert capfd.readouterr() == ("", "")


# Lengths that are stated, and lengths that libav guesses


def soft_then_loud(rate: int, channels: int = 2, seconds: float = 6.0) -> Wave:
    """At a variable bit rate its first frames are much smaller than the others."""
    noise = 0.3 * np.random.default_rng(0).standard_normal((channels, round(seconds * rate)))
    noise[:, : 2 * rate] *= 1e-5
    return noise.astype(np.float32)


def variable(container: str = "mp3", rate: int = 44_100, channels: int = 2, **options: str) -> bytes:
    """An MP3 track at a variable bit rate."""
    wave, memory = soft_then_loud(rate, channels), io.BytesIO()
    layout = ("mono", "stereo")[channels - 1]
    with av.open(memory, "w", format=container, options=options) as file:
        quality = {"flags": "+qscale", "global_quality": "300"}
        track = file.add_stream("libmp3lame", rate=rate, layout=layout, options=quality)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T).reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        file.mux(track.encode(frame))
        file.mux(track.encode(None))
    return memory.getvalue()


def changed(content: bytes, place: int, new: bytes) -> bytes:
    """An MP3 file with other bytes at a place behind the beginning of its Xing header."""
    place += content.index(b"Xing")
    return content[:place] + new + content[place + len(new) :]


TAG = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
UNSTATED: dict[str, Callable[[], bytes]] = {
    "no Xing header": lambda: variable(write_xing="0"),
    "no frames in it": lambda: changed(variable(), 8, bytes(4)),
    "an unknown number": lambda: changed(variable(), 8, b"\xff" * 4),
    "no number": lambda: changed(variable(), 7, b"\0"),
    "its name is gone": lambda: changed(variable(), 0, bytes(4)),
    "low rate": lambda: variable(rate=22_050, channels=1, write_xing="0"),
    "tags in front": lambda: TAG + TAG + variable(write_xing="0"),
    "two files": lambda: variable() + variable(),
    "two files with tags between": lambda: variable() + b"TAG" + bytes(125) + TAG + variable(write_xing="0"),
    "matroska, live": lambda: variable("matroska", live="1"),
    "transport stream": lambda: variable("mpegts"),
    "in WAV": lambda: variable("wav"),
    "AC-3": lambda: encode("ac3", "ac3", soft_then_loud(48_000), 48_000),
    "MP2": lambda: encode("mp2", "mp2", soft_then_loud(48_000), 48_000),
    "AAC": lambda: encode("aac", "adts", soft_then_loud(44_100), 44_100),
}


@pytest.mark.parametrize("name", list(UNSTATED))
def test_a_file_that_states_no_length_is_not_damaged(name: str):
    damage: list[str] = []
    wave = audio.decode(UNSTATED[name](), RATE, on_damage=damage.append)
    assert damage == []
    assert wave.shape[1] / RATE == pytest.approx(12 if "two" in name else 6, abs=0.2)


@pytest.mark.parametrize(
    ("tags", "rate", "channels"),
    [(b"", 44_100, 2), (TAG, 44_100, 1), (TAG + TAG, 22_050, 2), (b"", 22_050, 1), (TAG, 8_000, 1)],
)
def test_a_cut_off_mp3_that_states_its_frames_is_damaged(tags: bytes, rate: int, channels: int):
    content = variable(rate=rate, channels=channels)
    damage: list[str] = []
    audio.decode(tags + content[: len(content) * 2 // 3], RATE, on_damage=damage.append)
    assert re.search(r"s decoded of the 6\.[0-2] s in its header", damage[0])


# Where FFmpeg fails, libsndfile reads

REPEATED = Path(__file__).parent / "data" / "ogg_headers_repeated.ogg"


@pytest.mark.parametrize("source", [REPEATED, str(REPEATED), REPEATED.read_bytes()])
def test_what_ffmpeg_refuses_is_read_by_libsndfile(source, capfd):
    damage: list[str] = []
    wave = audio.decode(source, RATE, on_damage=damage.append)
    assert (wave.shape, damage) == ((2, 96_000), [])
    assert len(list(audio.stream(source, 44_100, block_seconds=0.5))) > 5
    assert capfd.readouterr() == ("", "")


def test_libsndfile_continues_where_ffmpeg_stops(monkeypatch):
    """What both read is there once, whole, and without a word of damage."""
    complete = sine(3.0, RATE, 2)
    content = sound_file(complete, RATE, "FLAC")

    class Failing:
        def __init__(self, track):
            self.track, self.packets = track, 0

        def __getattr__(self, name):
            return getattr(self.track, name)

        def decode(self, packet):
            self.packets += 1
            if self.packets > 5:
                raise ValueError("gives up")
            return self.track.decode(packet)

    decoded = readers.Reader._decoded
    kept: dict[int, Failing] = {}
    monkeypatch.setattr(
        readers.Reader,
        "_decoded",
        lambda reader, track, packet: decoded(reader, kept.setdefault(id(reader), Failing(track)), packet),
    )
    damage: list[str] = []
    np.testing.assert_allclose(audio.decode(content, RATE, on_damage=damage.append), complete, atol=2**-14)
    assert damage == []


@pytest.mark.parametrize("span", [(0.0, 0.7), (0.25, 1.75), (1.3, None), (2.99, 9.0)])
def test_a_part_of_a_file(span):
    complete = sine(3.0, RATE, 2)
    start, end = span
    pieces = audio.stream(sound_file(complete, RATE, "FLAC"), RATE, start=start, end=end)
    expected = complete[:, round(start * RATE) : None if end is None else round(end * RATE)]
    np.testing.assert_allclose(np.concatenate(list(pieces), axis=1), expected, atol=2**-14)


@pytest.mark.parametrize("packet", [0, 1, 50, 107, 108, 150, 215, 216, 300])
def test_damage_is_reported_for_the_part_that_lacks_it(packet, monkeypatch):
    """Of three parts that meet, two of them at the border of a packet, exactly one reports a damaged packet."""
    content, decode = sound_file(sine(30.0, 44_100), 44_100, "FLAC"), readers.Reader._decoded
    packets: list[int] = []

    def decode_all_but_one(reader, track, data):
        packets.append(1)
        pieces = decode(reader, track, data)
        if len(packets) != packet + 1:
            return pieces
        reader.skipped += 1
        return []

    monkeypatch.setattr(readers.Reader, "_decoded", decode_all_but_one)
    damage: list[str] = []
    borders = [0.0, 108 * 4096 / 44_100, 20.0, None]
    for start, end in itertools.pairwise(borders):
        packets.clear()
        for _ in audio.stream(content, RATE, start=start, end=end, on_damage=damage.append):
            pass
    assert [line.partition(": ")[2] for line in damage] == ["damaged packets left out: 1"]


def test_nothing_is_decoded_behind_the_end(monkeypatch):
    decoded = readers.Reader._counted
    seconds: list[float] = []
    monkeypatch.setattr(
        readers.Reader, "_counted", lambda reader, piece: seconds.append(reader.seconds) or decoded(reader, piece)
    )
    list(audio.stream(sound_file(sine(9.0, RATE), RATE), RATE, end=2.0))
    assert max(seconds) <= 2.0


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, 1e29])
def test_invalid_samples_are_reported_and_left_out(value):
    wave = np.float64(sine(3.0, 44_100, 2))
    wave[0, 66_150:66_155] = value
    spans: list[tuple[float, float]] = []
    content = sound_file(wave, 44_100, subtype="DOUBLE")
    decoded = np.concatenate(list(audio.stream(content, RATE, on_invalid=lambda *span: spans.append(span))), axis=1)
    assert spans == [pytest.approx((1.5, 1.5 + 5 / 44_100))]
    assert np.abs(decoded).max() < 0.6


@pytest.mark.parametrize(("codec", "container"), [("flac", "flac"), ("libmp3lame", "mp3"), ("libopus", "webm")])
def test_garbage_in_the_middle_costs_only_the_middle(capfd, codec, container):
    content = encode(codec, container, sine(6.0, 48_000, 2), 48_000)
    middle, garbage = len(content) // 2, np.random.default_rng(0).bytes(len(content) // 10)
    damage: list[str] = []
    broken = content[:middle] + garbage + content[middle + len(garbage) :]
    wave = audio.decode(broken, RATE, name="broken", on_damage=damage.append)
    assert 4.0 < wave.shape[1] / RATE <= 6.1
    assert len(damage) == 1
    assert "\n" not in damage[0]
    for part in (wave[:, : 2 * RATE], wave[:, -RATE:]):
        assert dominant(part, RATE) == pytest.approx(PITCH, abs=2)
    assert capfd.readouterr() == ("", "")


def test_damage_may_be_ignored_and_reading_may_stop_early():
    content = encode("flac", "flac", sine(6.0, 44_100), 44_100)
    assert audio.decode(content[: len(content) // 2], RATE).shape[1] > RATE
    damage: list[str] = []
    pieces = audio.stream(content[: len(content) // 2], RATE, block_seconds=0.5, on_damage=damage.append)
    assert next(pieces).shape[0] == 1
    pieces.close()
    assert damage == []


@given(lengths=st.lists(st.integers(0, 50), max_size=12), size=st.integers(1, 40), channels=st.integers(1, 2))
def test_blocks_recut_without_loss(lengths, size, channels):
    complete = np.arange(channels * sum(lengths), dtype=np.float32).reshape(channels, -1)
    cut = list(audio.blocks(np.split(complete, np.cumsum(lengths)[:-1], axis=1) if lengths else [], size))
    assert all(block.shape == (channels, size) for block in cut[:-1])
    assert all(0 < block.shape[1] <= size and block.flags.c_contiguous for block in cut)
    assert sum(block.shape[1] for block in cut) == complete.shape[1]
    if cut:
        np.testing.assert_array_equal(np.concatenate(cut, axis=1), complete)


def test_blocks_are_cut_as_pieces_come():
    def endless():
        while True:
            yield np.zeros((1, 7), np.float32)

    cut = audio.blocks(endless(), 10)
    assert [next(cut).shape for _ in range(3)] == [(1, 10)] * 3
    with pytest.raises(ValueError, match="at least 1 sample"):
        next(audio.blocks([], 0))


def test_channels_convert_both_ways():
    stereo = np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)
    mono = audio.to_channels(stereo, 1)
    np.testing.assert_array_equal(mono, [[0.5, -0.5]])
    assert mono.dtype == np.float32
    np.testing.assert_array_equal(audio.to_channels(mono, 2), [[0.5, -0.5]] * 2)
    assert audio.to_channels(stereo, 2) is stereo
    with pytest.raises(ValueError, match="2 channels cannot become 3"):
        audio.to_channels(stereo, 3)


def test_silence_is_judged_by_the_peak():
    wave = np.zeros((2, 1000), np.float32)
    assert audio.is_silent(wave)
    assert audio.is_silent(wave[:, :0])
    wave[1, 500] = -0.01  # -40 dBFS
    assert not audio.is_silent(wave)
    assert audio.is_silent(wave, threshold_db=-39.0)


def test_resampling_keeps_pitch_and_length():
    wave = sine(1.0, 44_100, 2)
    there = audio.resample(wave, 44_100, RATE)
    assert there.shape == (2, RATE)
    assert there.flags.c_contiguous
    assert dominant(there, RATE) == pytest.approx(PITCH, abs=1)
    assert audio.resample(wave, 44_100, 44_100) is wave
    np.testing.assert_allclose(there, audio.decode(sound_file(wave, 44_100, subtype="FLOAT"), RATE), atol=1e-5)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".wav"])
def test_writing_clips_and_does_not_wrap(tmp_path, suffix):
    path = tmp_path / f"loud{suffix}"
    audio.write(path, 6 * sine(0.5, RATE, hertz=50), RATE)
    wave = audio.decode(path, RATE)
    assert np.abs(wave).max() < 1.2
    assert np.abs(np.diff(wave)).max() < 0.2  # a wrapped sample would jump by 2


def test_long_vorbis_is_written(tmp_path):
    path = tmp_path / "long.ogg"
    audio.write(path, np.zeros((1, 2_200_000), np.float32), 16_000)  # in one piece, libsndfile would end the process
    assert sum(block.shape[1] for block in audio.stream(path, 16_000)) == 2_200_000


@pytest.mark.parametrize(
    ("name", "wave", "rate", "reason"),
    [
        ("a.mp3", sine(0.1, RATE), RATE, r"cannot write \.mp3, only \.flac, \.ogg, \.wav"),
        ("a", sine(0.1, RATE), RATE, "cannot write no suffix"),
        ("a.wav", sine(0.1, RATE)[0], RATE, r"\[channels, samples\]"),
        ("a.wav", np.full((1, 10), np.nan, np.float32), RATE, "NaN or infinite"),
        ("a.flac", sine(0.1, RATE), 1_000_000, "cannot hold this sound at 1000000 Hz"),
        ("missing/a.wav", sine(0.1, RATE), RATE, "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, wave, rate, reason):
    with pytest.raises(AudioError, match=reason) as error:
        audio.write(tmp_path / name, wave, rate)
    one_line(error, name)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # writing stops half way, as on a full disk
    try:
        with pytest.raises(audio.AudioWriteError, match=r"tone\.wav: cannot be written \(File too large\)"):
            audio.write(tmp_path / "tone.wav", sine(1.0, RATE), RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_outlives_a_failure(tmp_path, monkeypatch, failure):
    path = tmp_path / "tone.wav"
    audio.write(path, sine(0.5, RATE), RATE)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((audio.AudioWriteError, KeyboardInterrupt)) as error:
        audio.write(path, sine(1.0, RATE), RATE)
    assert os.listdir(tmp_path) == ["tone.wav"]
    assert path.read_bytes() == before
    assert str(error.value) in ("", f"{path}: cannot be written (No space left on device)")


def test_suffixes_are_lower_case_with_a_dot():
    assert {".mp3", ".m4a", ".opus", ".wma", ".mkv"} | audio.WRITTEN_SUFFIXES <= audio.AUDIO_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in audio.AUDIO_SUFFIXES)
