"""Tempo, beats and bars of a song.

Onsets in four frequency ranges and changes of harmony are the signals. Tempi that explain the onsets are candidates,
most often octaves of each other; beats are tracked at each of them, and a linear model of the signals on and between
beats selects one. Bars of three and of four beats, from each of their beats, are scored in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from musicgen_dreamboothing.analysis.spectrum import mono_at, spectra
from musicgen_dreamboothing.audio import Wave, is_silent

Array = NDArray[np.float64]
Places = NDArray[np.intp]  # of beats, in steps

RATE = 22_050  # Hz
WINDOW, HOP = 1024, 256  # samples
STEPS_PER_SECOND = RATE / HOP  # 86.1
SHORTEST_SECONDS = 5.0

LOWEST_HZ, HIGHEST_HZ, BANDS_PER_OCTAVE = 40.0, 10_000.0, 4
RANGES_HZ = (0.0, 150.0, 600.0, 2500.0, HIGHEST_HZ)  # kick and bass | harmony | snare | cymbals
RISE_STEPS = 2  # over which an onset is measured
CONTRAST = 100.0  # of the logarithm

HARMONY_RATE, HARMONY_WINDOW, HARMONY_HOP = 11_025, 2048, 512
HARMONY_STEPS_PER_SECOND = HARMONY_RATE / HARMONY_HOP  # 21.5
LOWEST_PITCH, HIGHEST_PITCH = 36, 95  # MIDI: five octaves
BASS_PITCHES = 16  # the lowest ones
CHANGE_SECONDS = 0.25  # a chord, whatever the tempo

SLOWEST, FASTEST, TEMPI = 50.0, 215.0, 400  # beats a minute; on a grid of equal ratios, 0.4 % apart
CANDIDATES = 6
MULTIPLES = ((1, 1.0), (2, 0.7), (3, 0.3), (4, 0.7))  # of a beat, and the weights of the autocorrelation there
USUAL = 110.0
PRIOR_OCTAVES = 0.7  # deviation of the tempo that people feel from the usual one: `log_prior`
TIGHTNESS = 100.0  # cost of a beat that is too early or late
FAINTEST = 1e-3  # deviation of a signal, in nepers: below there are no onsets
FAINT_PULSE, CLEAR_PULSE = 0.35, 0.7  # autocorrelation: of 8 s of noise up to 0.26, of 479 of 480 pieces above 0.64

LOW, LOW_MID, MID, HIGH, HARMONY, BASS, CLASSES = range(7)  # the rows of signals
ECHOES = (2 / 3, 3 / 2, 2.0, 4.0)  # beats
ECHOING = [LOW, HIGH]
TELLING = [LOW, MID, HIGH, HARMONY, BASS]
SURE = 0.8
AUDIBLE = 0.1  # of an onset, relative to the strongest
DELAY_SECONDS = -0.005  # of an onset in the spectrum
METERS = (4, 3)  # beats in a bar
FITTED_BARS = 12  # in the pieces that `BAR_WEIGHTS` were fitted on
JUMP = 2.0  # cost of a bar of another length, in logits

# Of softmaxes over candidates and over ways to cut bars, fitted on synthesised pieces: benchmarks/listening.py --fit
TEMPO_WEIGHTS = (
    (2.29, 2.53, -1.09),  # the fit of the tempo, its distance from the usual one in octaves, and its square
    (-1.14, -2.63, -0.14, 1.35, -4.75, -1.22, 4.97, -0.78),  # ECHOES in the lows and the highs
    (0.83, 0.64, -0.14, -2.7, -2.53),  # signals in TELLING halfway between beats
    (-1.0, -0.03, -0.05, -8.05, 3.03),  # and a quarter of a beat away from them
)
BAR_WEIGHTS = (
    (0.72,),  # bars of four; then the four ranges, and changes of harmony from one and from two beats to as many
    (1.94, 0.37, 0.03, -1.76, 1.03, -0.69, 1.01, 0.59, 0.95, 0.58),  # on downbeats
    (0.41, 0.25, -0.61, -0.51, 0.03, 0.53, 0.11, -0.94, -1.35, -0.19),  # two beats later, in bars of four
    (0.83, 1.01, 1.04, 1.09, 0.76, 0.43, 0.39, 0.3, -0.13, -0.36),  # repeating after a bar
    (0.47, 0.17, 0.43, 1.16, 2.05, 1.0, 0.99, 4.39, 2.55, 3.24),  # on any beat
)


@dataclass(frozen=True)
class Rhythm:
    """Tempo, beats and bars."""

    tempo: float  # beats a minute
    confidence: float  # probability
    beats: tuple[float, ...]  # seconds
    downbeats: tuple[float, ...]  # those of `beats` that begin a bar
    beats_per_bar: int

    @property
    def is_sure(self) -> bool:
        """Whether the tempo is probable enough to be used."""
        return self.confidence >= SURE


@dataclass(frozen=True)
class Bars:
    """One way to cut beats into bars of the same length; `evidence` are features for `BAR_WEIGHTS`."""

    beats: Places
    beats_per_bar: int
    first: int  # downbeat
    evidence: Array
    signals: Array  # [10, beats], each with mean 0 and deviation 1


@dataclass(frozen=True)
class Candidate:
    """Beats at one tempo; `evidence` are features for `TEMPO_WEIGHTS`."""

    beats: Places
    echo: float  # 0..about 2.8: weighted autocorrelation at multiples of the beat
    evidence: Array

    @property
    def period(self) -> float:
        """Steps from beat to beat, the median over half the song: robust to a lost or added beat."""
        half = len(self.beats) // 2
        return float(np.median((self.beats[half:] - self.beats[:-half]) / half))

    @property
    def tempo(self) -> float:
        """Beats a minute."""
        return 60 * STEPS_PER_SECOND / self.period


def find_rhythm(wave: Wave, rate: int) -> Rhythm | None:
    """The rhythm of `[C, S]` at `rate` Hz; None without a pulse: silence, a drone, noise, less than 5 s."""
    if is_silent(wave) or wave.shape[1] < SHORTEST_SECONDS * rate:
        return None
    signals, pitches = signals_of(wave, rate)
    tempi = candidates(signals)
    if max((candidate.echo for candidate in tempi), default=0.0) < FAINT_PULSE:
        return None
    scores = np.array([candidate.evidence for candidate in tempi]) @ np.concatenate(TEMPO_WEIGHTS)
    scores += log_prior(np.array([candidate.tempo for candidate in tempi]))
    best = tempi[int(scores.argmax())]
    ways = bars(best, signals, pitches)
    chosen = ways[int((np.array([way.evidence for way in ways]) @ np.concatenate(BAR_WEIGHTS)).argmax())]
    times = np.round(np.maximum(chosen.beats / STEPS_PER_SECOND + DELAY_SECONDS, 0), 3)
    audible = _audible(chosen.beats, signals)
    return Rhythm(
        tempo=best.tempo,
        confidence=min(1.0, best.echo / CLEAR_PULSE) / float(np.exp(scores - scores.max()).sum()),
        beats=tuple(times[audible].tolist()),
        downbeats=tuple(times[audible & _downbeats(chosen)].tolist()),
        beats_per_bar=chosen.beats_per_bar,
    )


def log_prior(tempo: Array) -> Array:
    """Logarithm of the probability, up to a constant, that people feel a pulse at this tempo, in beats a minute.

    Log-normal, after Parncutt (1994), "A perceptual model of pulse salience and metrical accent in musical rhythms",
    whose deviation is 0.2 decades or 0.66 octaves, and librosa's `start_bpm`. `TEMPO_WEIGHTS` were fitted on pieces of
    all tempi alike, which made them take the eighths of slow music for beats.
    """
    return np.asarray(-0.5 * (np.log2(tempo / USUAL) / PRIOR_OCTAVES) ** 2)


def signals_of(wave: Wave, rate: int) -> tuple[Array, Array]:
    """The signals: onsets and changes of harmony `[7, T]`, and pitches `[60, T']`."""
    rises = onsets(mono_at(wave, rate, RATE))
    levels = pitches(mono_at(wave, rate, HARMONY_RATE))
    return np.concatenate([rises, changes(levels, CHANGE_SECONDS, rises.shape[1])]), levels


def onsets(mono: NDArray[np.float32]) -> Array:
    """The rise of loudness in each range `[4, T]`, at `STEPS_PER_SECOND`.

    Logarithmic flux against the loudest neighbouring band, so that vibrato is no onset, after Böck & Widmer (2013),
    "Maximum filter vibrato suppression for onset detection".
    """
    filters, centres = _bands()
    loudness = np.concatenate([block @ filters for block in spectra(mono, WINDOW, HOP)]).astype(float)
    loudness = np.log1p(CONTRAST * loudness / max(float(np.percentile(loudness, 95)), 1e-9))
    around = np.pad(loudness, ((0, 0), (1, 1)))
    widest = np.maximum(np.maximum(around[:, :-2], around[:, 2:]), loudness)
    rises = np.clip(loudness[RISE_STEPS:] - widest[:-RISE_STEPS], 0, None)
    rises = np.pad(rises, ((RISE_STEPS, 0), (0, 0)))
    ranges = np.searchsorted(RANGES_HZ, centres, side="right") - 1
    return np.array([rises[:, ranges == number].mean(axis=1) for number in range(4)])


def _bands() -> tuple[NDArray[np.float32], Array]:
    """Triangular filters `[F, B]`, each of weight 1, and their centres in Hz."""
    count = int(np.log2(HIGHEST_HZ / LOWEST_HZ) * BANDS_PER_OCTAVE)
    edges = LOWEST_HZ * 2 ** (np.arange(count + 2) / BANDS_PER_OCTAVE)
    return _triangles(np.arange(WINDOW // 2 + 1) * RATE / WINDOW, edges), edges[1:-1]


def _triangles(places: Array, edges: Array) -> NDArray[np.float32]:
    """Triangular filters over three edges each `[places, edges - 2]`; very narrow ones get their nearest bin."""
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    at = places[:, None]
    filters = np.clip(np.minimum((at - low) / (centre - low), (high - at) / (high - centre)), 0, None)
    nearest = np.abs(at - centre).argmin(axis=0)
    filters[nearest, np.arange(len(centre))] += 1e-6
    return (filters / filters.sum(axis=0)).astype(np.float32)


def pitches(mono: NDArray[np.float32]) -> Array:
    """Loudness of each semitone `[60, T']`, in nepers, at `HARMONY_STEPS_PER_SECOND`, of a wave at `HARMONY_RATE`."""
    hertz = np.maximum(np.arange(HARMONY_WINDOW // 2 + 1) * HARMONY_RATE / HARMONY_WINDOW, 1e-3)
    filters = _triangles(69 + 12 * np.log2(hertz / 440), np.arange(LOWEST_PITCH - 1.0, HIGHEST_PITCH + 2))
    loudness = np.concatenate([block @ filters for block in spectra(mono, HARMONY_WINDOW, HARMONY_HOP)]).astype(float)
    return np.log1p(CONTRAST / 3 * loudness / max(float(np.percentile(loudness, 98)), 1e-9)).T


def changes(pitches: Array, seconds: float, steps: int) -> Array:
    """Differences of the `seconds` before and after each step `[3, steps]`: of pitches, bass, pitch classes."""
    frames = max(2, round(seconds * HARMONY_STEPS_PER_SECOND))
    padded = np.pad(pitches, ((0, 0), (frames, frames)), mode="edge")
    sums = np.cumsum(np.pad(padded, ((0, 0), (1, 0))), axis=1)
    means = (sums[:, frames:] - sums[:, :-frames]) / frames
    differences = means[:, frames:] - means[:, :-frames]
    classes = differences.reshape(-1, 12, differences.shape[1]).sum(axis=0)
    places = np.arange(steps) * HARMONY_STEPS_PER_SECOND / STEPS_PER_SECOND
    curves = [np.abs(part).mean(axis=0) for part in (differences, differences[:BASS_PITCHES], classes)]
    return np.array([_between(curve, places) for curve in curves])


def candidates(signals: Array) -> list[Candidate]:
    """The tempi that explain the onsets in `[7, T]` best, each with its beats."""
    curves = np.array([_peaks(signal) for signal in signals[:4]])
    pulse = curves.mean(axis=0)
    lags = int(4 * 60 * STEPS_PER_SECOND / SLOWEST) + 2
    echoes = np.array([_autocorrelation(curve, lags) for curve in (pulse, *curves)])
    periods = 60 * STEPS_PER_SECOND / np.geomspace(SLOWEST, FASTEST, TEMPI)
    multiples, weights = np.array(MULTIPLES).T
    fits = weights @ _between(echoes[0], multiples[:, None] * periods)
    peaks = np.flatnonzero((fits[1:-1] >= fits[:-2]) & (fits[1:-1] > fits[2:])) + 1
    tempi = []
    for peak in peaks[np.argsort(-fits[peaks])][:CANDIDATES]:
        beats = _beats(pulse / max(pulse.std(), 1e-9), float(periods[peak]))
        if len(beats) >= 6:
            tempi.append((beats, float(fits[peak])))
    loud = _loudest_around(np.concatenate([curves, signals[4:]]))
    return [Candidate(beats, fit, _evidence(beats, fit, echoes[1:], loud)) for beats, fit in tempi]


def _peaks(signal: Array) -> Array:
    """A signal above its mean over a second, with a deviation of 1 unless it is almost flat."""
    smooth = np.convolve(signal, np.hanning(5) / 2, mode="same")
    second = int(STEPS_PER_SECOND) | 1
    around = np.convolve(np.pad(smooth, second // 2, mode="reflect"), np.ones(second) / second, mode="valid")
    above = np.clip(smooth - around, 0, None)
    return above / max(float(above.std()), FAINTEST)


def _autocorrelation(curve: Array, lags: int) -> Array:
    """`[lags]`, 1 at lag 0, corrected for the overlap; 0 without overlap."""
    centred = curve - curve.mean()
    steps = len(centred)
    spectrum = fft.rfft(centred, 2 * steps)
    products = fft.irfft(np.abs(spectrum) ** 2)[: min(lags, steps)] / np.arange(steps, max(steps - lags, 0), -1)
    return products / max(products[0], 1e-9)


def _between(curve: NDArray[np.floating], places: NDArray[np.floating]) -> Array:
    """The values of a curve at fractional places; 0 beyond its end."""
    return np.interp(places, np.arange(len(curve)), curve, right=0.0)


def _beats(pulse: Array, period: float) -> Places:
    """Beats by dynamic programming: strong pulse and even steps.

    After Ellis (2007), "Beat tracking by dynamic programming", section 3; as many steps as the shortest lag at once.
    """
    lags = np.arange(round(period / 1.5), round(period * 1.5) + 1)
    cost = TIGHTNESS * np.log(lags / period) ** 2
    total, before = pulse.copy(), np.full(len(pulse), -1)
    for begin in range(lags[0], len(pulse), lags[0]):
        here = np.arange(begin, min(begin + lags[0], len(pulse)))
        back = here[:, None] - lags
        gain = np.where(back >= 0, total[np.maximum(back, 0)] - cost, -np.inf)
        best = gain.argmax(axis=1)
        most = gain[np.arange(len(here)), best]
        total[here] += np.maximum(most, 0)
        before[here] = np.where(most > 0, back[np.arange(len(here)), best], -1)
    last = max(0, len(pulse) - round(period))
    return _path_to(before, last + int(total[last:].argmax()))


def _path_to(before: Places, place: int) -> Places:
    """The places that lead to this one, in order."""
    path = []
    while place >= 0:
        path.append(place)
        place = int(before[place])
    return np.array(path[::-1])


def _loudest_around(signals: Array) -> Array:
    """The maximum of each signal over five steps (58 ms), divided by its mean: musicians are not exact."""
    padded = np.pad(signals, ((0, 0), (2, 2)), mode="edge")
    loudest = np.max([padded[:, shift : shift + signals.shape[1]] for shift in range(5)], axis=0)
    return loudest / (loudest.mean(axis=1, keepdims=True) + 1e-9)


def _evidence(beats: Places, fit: float, echoes: Array, loud: Array) -> Array:
    """Features of a tempo `[21]`, in the order of `TEMPO_WEIGHTS`."""
    period = float(np.median(np.diff(beats)))
    octaves = np.log2(60 * STEPS_PER_SECOND / period / USUAL)
    repeats = [_between(echoes[signal], np.array(ECHOES) * period) for signal in ECHOING]
    halfway = _between_beats(beats, loud[TELLING], (0.5,))
    quarters = _between_beats(beats, loud[TELLING], (0.25, 0.75))
    return np.concatenate([[fit, octaves, octaves**2], *repeats, np.log(halfway + 0.1), np.log(quarters + 0.1)])


def _between_beats(beats: Places, signals: Array, parts: tuple[float, ...]) -> Array:
    """The mean of signals `[N, T]` at fractions of each beat `[N]`."""
    order = np.arange(len(beats))
    places = [np.interp(order[:-1] + part, order, beats).round().astype(int) for part in parts]
    return signals[:, np.concatenate(places)].mean(axis=1)


def bars(candidate: Candidate, signals: Array, pitches: Array) -> list[Bars]:
    """All ways to cut a song into bars: of each meter, from each of the beats or halfway between two."""
    beat_seconds = 60 / candidate.tempo
    differences = [changes(pitches, beats * beat_seconds, signals.shape[1]) for beats in (1, 2)]
    loud = _loudest_around(np.concatenate([signals[: HIGH + 1], *differences]))
    offbeats = (candidate.beats[1:] + candidate.beats[:-1]) // 2
    ways = []
    for beats in (candidate.beats, offbeats):
        strength = np.log(loud[:, beats].mean(axis=1) + 0.1)
        standard = _standard(loud[:, beats])
        for meter in METERS:
            evidence = _bar_evidence(standard, strength, meter)
            ways += [Bars(beats, meter, first, evidence[first], standard) for first in range(meter)]
    return ways


def _standard(rows: Array) -> Array:
    """Rows with mean 0 and deviation 1, clipped at the 97th percentile."""
    capped = np.minimum(rows, np.percentile(rows, 97, axis=1, keepdims=True))
    centred = capped - capped.mean(axis=1, keepdims=True)
    return centred / (centred.std(axis=1, keepdims=True) + 1e-9)


def _bar_evidence(signals: Array, strength: Array, meter: int) -> Array:
    """Features of bars from each of the first beats `[meter, 41]`, of signals on beats `[10, beats]`.

    The meter; then, of every signal, its mean on downbeats, and two beats later in bars of four; its correlation with
    itself after a bar; and its `strength` on beats.
    """
    echo = (signals[:, meter:] * signals[:, :-meter]).mean(axis=1)
    by_place = np.array([signals[:, place::meter].mean(axis=1) for place in range(meter)])
    third = np.roll(by_place, -2, axis=0) * (meter == 4)
    rest = np.tile(np.concatenate([echo, strength]), (meter, 1))
    return np.hstack([np.full((meter, 1), float(meter == 4)), by_place, third, rest])


def _downbeats(way: Bars) -> NDArray[np.bool_]:
    """Which beats begin a bar: the best path (Viterbi), where bars of another length have a cost."""
    meter = way.beats_per_bar
    third = np.pad(way.signals[:, 2:], ((0, 0), (0, 2))) * (meter == 4)
    marks = (np.array(BAR_WEIGHTS[1]) @ way.signals + np.array(BAR_WEIGHTS[2]) @ third) / FITTED_BARS
    total, before = np.zeros(meter), np.zeros((len(marks), meter), int)
    for beat, mark in enumerate(marks):
        steady, jump = np.roll(total, 1), total.max() - JUMP
        before[beat] = np.where(steady >= jump, np.roll(np.arange(meter), 1), total.argmax())
        total = np.maximum(steady, jump)
        total[0] += mark
    place, places = int(total.argmax()), []
    for row in before[::-1]:
        places.append(place)
        place = int(row[place])
    return np.array(places[::-1]) == 0


def _audible(beats: Places, signals: Array) -> NDArray[np.bool_]:
    """Which beats lie between the first and the last onset."""
    strongest = signals[: HIGH + 1].max(axis=0)
    loud = np.flatnonzero(strongest >= AUDIBLE * strongest.max())
    return np.asarray((beats >= loud[0] - RISE_STEPS) & (beats <= loud[-1] + RISE_STEPS))
