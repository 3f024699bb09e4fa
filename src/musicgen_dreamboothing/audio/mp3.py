"""The length that an MP3 file states: libav reports an estimate from the bit rate where there is none."""

from __future__ import annotations

from typing import BinaryIO

_SEARCHED = 65_536  # bytes behind the ID3 tags in which the first frame must begin
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by MPEG version
_MPEG1, _LAYER3, _MONO = 3, 1, 3
_UNKNOWN = 0xFFFFFFFF


def stated_seconds(file: BinaryIO) -> float:
    """Seconds by the frame count in the Xing, Info or VBRI header of the first frame; 0 where there is none."""
    file.seek(_end_of_tags(file))
    head = file.read(_SEARCHED)
    place = head.find(b"\xff")
    while 0 <= place < len(head) - 4:
        if seconds := _seconds_of_frame(head[place : place + 64]):
            return seconds
        place = head.find(b"\xff", place + 1)
    return 0.0


def _end_of_tags(file: BinaryIO) -> int:
    """The first byte behind all ID3v2 tags."""
    place = 0
    while True:
        file.seek(place)
        header = file.read(10)
        if len(header) < 10 or header[:3] != b"ID3":
            return place
        has_footer = bool(header[5] & 0x10)
        place += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
        place += 10 * has_footer


def _seconds_of_frame(frame: bytes) -> float:
    """Seconds that a frame `[64 bytes]` with a VBR header states; 0 for others, and for a count of 0 or all ones."""
    version, layer, rate = frame[1] >> 3 & 3, frame[1] >> 1 & 3, frame[2] >> 2 & 3
    if frame[1] & 0xE0 != 0xE0 or version not in _RATES or layer != _LAYER3 or rate == 3:
        return 0.0
    is_mono = frame[3] >> 6 == _MONO
    side_info = (17 if is_mono else 32) if version == _MPEG1 else (9 if is_mono else 17)
    xing, vbri = frame[4 + side_info :], frame[36:]
    count = 0
    if xing[:4] in (b"Xing", b"Info") and xing[7] & 1:
        count = int.from_bytes(xing[8:12], "big")
    elif vbri[:4] == b"VBRI":
        count = int.from_bytes(vbri[14:18], "big")
    samples = 1152 if version == _MPEG1 else 576
    return 0.0 if count == _UNKNOWN else count * samples / _RATES[version][rate]
