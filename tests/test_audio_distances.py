"""FAD and KAD against fadtk and kadtk, and the files that both read."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from figure_data import data_of
from toolkits import toolkit

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.embedding_files import (
    check_folder,
    embeddings_folder,
    model_name,
    save_embeddings,
)
from musicgen_dreamboothing.evaluation.figures import _frechet, _kernel
from musicgen_dreamboothing.evaluation.metrics.audio_distances import (
    distance_change,
    fewest_clips,
    frechet_distance,
    kernel_distance,
    separation,
)
from musicgen_dreamboothing.evaluation.metrics.statistics import TooFewError
from musicgen_dreamboothing.evaluation.verdict import direction

# Arguments of `sets`, and what fadtk 1.1.0 and kadtk 1.1.0 give for them: `test_the_toolkits_themselves` repeats it.
GOLDEN = [
    ((20, 6, 0.0), 0.7598420405086337, -1.7368674278),
    ((21, 6, 0.8, 0.5), 6.094003927661823, 51.8807830810),
    ((120, 40, 0.2, 1.3), 11.072428777752094, 1.4521718025),
    ((600, 32, 0.1), 1.0615421233480973, 0.3765225410),
]
ROUNDING = 1e-4  # of kadtk, which computes in fp32; of a sum of three means of up to 100


def sets(clips: int, dimensions: int, shift: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Songs and clips with correlated dimensions, `[clips + 7, D]` and `[clips, D]`."""
    rng = np.random.default_rng(clips)
    mix = rng.standard_normal((dimensions, dimensions)) / math.sqrt(dimensions)
    songs = rng.standard_normal((clips + 7, dimensions)) @ mix
    return songs, scale * rng.standard_normal((clips, dimensions)) @ mix + shift


def normal(number: int, dimensions: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((number, dimensions)) + mean


@pytest.mark.parametrize(("arguments", "fad", "kad"), GOLDEN)
def test_distances_are_those_of_the_toolkits(arguments: tuple[Any, ...], fad: float, kad: float) -> None:
    songs, clips = sets(*arguments)
    assert frechet_distance(songs, clips) == pytest.approx(fad, rel=1e-8)
    assert kernel_distance(songs, clips) == pytest.approx(kad, abs=ROUNDING)


@pytest.mark.filterwarnings("ignore")  # their code's, of newer scipy and torch
@pytest.mark.parametrize(("arguments", "fad", "kad"), GOLDEN)
def test_the_toolkits_themselves(arguments: tuple[Any, ...], fad: float, kad: float) -> None:
    songs, clips = sets(*arguments)
    with toolkit("fadtk", "fad") as (module,):
        statistics = [number for rows in (songs, clips) for number in module.calc_embd_statistics(rows)]
        assert module.calc_frechet_distance(*statistics) == pytest.approx(fad, rel=1e-6)
    with toolkit("kadtk", "kad") as (module,):
        rows = (torch.tensor(songs), torch.tensor(clips))
        found = module.calc_kernel_audio_distance(*rows, (None, None), "cpu").item()
        assert found == pytest.approx(kad, abs=ROUNDING)


def test_frechet_distance_of_known_gaussians() -> None:
    """Of N(0, I) and N(m, 4I): |m|² + D + 4D - 2 · 2D = |m|² + D, but for the bias of few clips."""
    found = frechet_distance(normal(40_000, 3, 0), 2 * normal(40_000, 3, 1) + 1.0)
    assert found == pytest.approx(3 + 3, rel=0.02)
    rows = normal(50, 4, 0)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows + 9, rows + 9 + 2) == pytest.approx(4 * 4)


@pytest.mark.parametrize(("dimensions", "fewest"), [(13, 500), (499, 500), (512, 513), (2048, 2049)])
def test_frechet_distance_takes_more_clips_than_dimensions(dimensions: int, fewest: int) -> None:
    assert fewest_clips(dimensions) == fewest


def brute_kernel(songs: np.ndarray, clips: np.ndarray) -> float:
    apart = sorted(float(np.linalg.norm(x - y)) for x, y in itertools.combinations(clips, 2))
    sigma = apart[(len(apart) - 1) // 2]
    k = lambda x, y: math.exp(-(np.linalg.norm(x - y) ** 2) / (2 * sigma**2 + 1e-8))  # noqa: E731
    within = [np.mean([k(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (songs, clips)]
    return 100 * (sum(within) - 2 * np.mean([k(x, y) for x in songs for y in clips]))


@pytest.mark.parametrize("number", [7, 8])  # an odd and an even number of pairs
def test_kernel_distance_by_hand(number: int) -> None:
    songs, clips = normal(9, 5, 0), normal(number, 5, 1, mean=0.7)
    assert kernel_distance(songs, clips) == pytest.approx(brute_kernel(songs, clips))
    assert kernel_distance(songs + 40, clips + 40) == pytest.approx(kernel_distance(songs, clips))
    assert kernel_distance(3 * songs, 3 * clips) == pytest.approx(kernel_distance(songs, clips))


def test_kernel_distance_of_one_distribution_is_zero_for_few_clips() -> None:
    found = [kernel_distance(normal(8, 4, 2 * n), normal(6, 4, 2 * n + 1)) for n in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(300) + 0.5  # σ is an estimate


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_distances_take_two_clips(distance: Any) -> None:
    for songs, clips in ((normal(5, 2, 0), normal(1, 2, 1)), (normal(1, 2, 0), normal(5, 2, 1))):
        with pytest.raises(TooFewError, match="two clips"):
            distance(songs, clips)


def test_equal_clips_are_infinitely_far() -> None:
    songs, same = normal(9, 3, 0), np.ones((4, 3))
    assert kernel_distance(songs, same) == pytest.approx(100)
    assert separation(songs, same) == math.inf


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.8, 1.2), (5.0, 2.5, 20.0)])
def test_separation_is_in_bandwidths(shift: float, least: float, most: float) -> None:
    assert least < separation(normal(40, 6, 0), normal(40, 6, 1, mean=shift)) < most


# Changes


def grouped(groups: int, clips: int, seed: int, dimensions: int = 4) -> np.ndarray:
    """`[groups * clips, D]`: clips of one group are alike."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, 1, dimensions))
    return (centres + 0.5 * rng.standard_normal((groups, clips, dimensions))).reshape(-1, dimensions)


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_a_change_has_both_values_and_an_interval(distance: Any) -> None:
    songs, tuned = grouped(12, 2, 0), grouped(5, 4, 1) + 0.3
    prompts, names = np.repeat(np.arange(5), 4), np.repeat(np.arange(12), 2)
    found = distance_change(distance, tuned + 3, tuned, songs, prompts=prompts, songs=names)
    assert found.base.value == pytest.approx(distance(songs, tuned + 3))
    assert found.tuned.value == pytest.approx(distance(songs, tuned))
    assert found.change.interval is not None
    assert found.change.interval[1] < 0  # nearer, surely
    same = distance_change(distance, tuned, tuned, songs, prompts=prompts, songs=names)
    assert same.change.interval == pytest.approx((0, 0), abs=1e-9)


def test_clips_of_a_prompt_are_left_out_together() -> None:
    songs = grouped(20, 1, 0)
    base, tuned = grouped(5, 4, 1), grouped(5, 4, 2)
    loose = distance_change(kernel_distance, base, tuned, songs)
    whole = distance_change(kernel_distance, base, tuned, songs, prompts=np.repeat(np.arange(5), 4))
    assert loose.change.interval is not None
    assert whole.change.interval is not None
    assert np.diff(whole.change.interval) > np.diff(loose.change.interval)


@pytest.mark.parametrize(("prompts", "songs"), [(2, 9), (9, 2), (1, 1)])
def test_few_prompts_or_songs_tell_no_interval(prompts: int, songs: int) -> None:
    base, reference = grouped(prompts, 4, 0), grouped(songs, 4, 1)
    found = distance_change(
        kernel_distance, base, base, reference, prompts=np.arange(4 * prompts) // 4, songs=np.arange(4 * songs) // 4
    )
    assert (found.base.interval, found.change.interval) == (None, None)


# Figures


@pytest.mark.parametrize(
    ("base", "tuned", "better", "change"),
    [(0.9, 0.0, "lower", "better"), (8.0, 6.0, "neither", ""), (8.0, 0.0, "neither", "")],
)
def test_a_kernel_tells_no_direction_from_far_away(base: float, tuned: float, better: str, change: str) -> None:
    songs, clips = grouped(24, 2, 0, 8), grouped(12, 3, 1, 8)
    (found,) = _kernel(data_of(clips + base, clips + tuned, songs, takes=3))
    assert found.better == better
    assert ("too far" in found.meaning) == (better == "neither")
    assert direction(found) in ((change,) if change else ("changed", "unclear"))


@pytest.mark.parametrize(("clips", "songs"), [(20, 64), (20, 600)])
def test_frechet_distance_is_missing_for_few_clips(clips: int, songs: int) -> None:
    rows = normal(clips, 4, 0)
    found = _frechet(data_of(rows, rows, normal(songs, 4, 1)))
    assert (found.base, found.tuned, direction(found)) == (None, None, "")
    assert found.reason == (
        f"it takes 500 clips of each model and 500 song excerpts, not {clips} and {songs} "
        "(--variations, --song_excerpts)"
    )


def test_frechet_distance_of_many_clips() -> None:
    songs, tuned = normal(520, 4, 0), normal(500, 4, 1)
    found = _frechet(data_of(tuned + 2, tuned, songs, takes=50))
    assert found.base == pytest.approx(frechet_distance(songs, tuned + 2))
    assert direction(found) == "better"


# Files


def test_the_toolkits_read_the_files(tmp_path: Path) -> None:
    """In their own layout: get_cache_embedding_path of fadtk.utils and kadtk.utils, load_stats of fadtk.fad."""
    data = data_of(normal(8, 4, 0), normal(8, 4, 1), normal(6, 4, 2))
    save_embeddings(tmp_path / "out", data)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"base", "tuned", "songs", "embeddings.json"}
    for name in ("base", "tuned", "songs"):
        folder, vectors = tmp_path / "out" / name, getattr(data.vectors, name)
        sounds = sorted(folder.glob("*.*"))  # as both list a set
        assert [path.suffix for path in sounds] == [".wav"] * len(vectors)
        rows = [np.load(path.parent / "embeddings" / "clap.v2" / path.with_suffix(".npy").name) for path in sounds]
        assert np.array_equal(np.concatenate(rows), vectors)
        assert np.load(folder / "stats" / "clap.v2" / "mu.npy") == pytest.approx(vectors.mean(axis=0))
        assert np.load(folder / "stats" / "clap.v2" / "cov.npy") == pytest.approx(np.cov(vectors, rowvar=False))
        assert audio.decode(sounds[0], 16_000).shape == (1, 800)
    listing = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert (listing["embedding"], listing["model"]) == ("CLAP some/clap.v2", "clap.v2")
    assert listing["sets"]["songs"]["00003.wav"] == "song 1"
    assert listing["sets"]["tuned"]["00005.wav"] == "style 1 #1"


@pytest.mark.filterwarnings("ignore")
def test_the_toolkits_give_the_figures_from_the_files(tmp_path: Path) -> None:
    data = data_of(normal(30, 4, 0), normal(30, 4, 1, mean=0.5), normal(40, 4, 2))
    save_embeddings(tmp_path, data)
    model = SimpleNamespace(name="clap.v2", sr=48_000)
    songs, tuned = data.vectors.songs, data.vectors.tuned
    with toolkit("fadtk", "utils", "fad") as (_, module):
        found = module.FrechetAudioDistance(model, load_model=False).score(tmp_path / "songs", tmp_path / "tuned")
        assert found == pytest.approx(frechet_distance(songs, tuned), rel=1e-6)
    with toolkit("kadtk", "utils", "emb_loader", "kad") as (*_, module):
        logger = SimpleNamespace(info=print)
        found = module.KernelAudioDistance(model, "cpu", logger=logger).score(tmp_path / "songs", tmp_path / "tuned")
        assert found.item() == pytest.approx(kernel_distance(songs, tuned), abs=ROUNDING)


def test_only_files_of_an_earlier_evaluation_are_replaced(tmp_path: Path) -> None:
    data = data_of(normal(8, 4, 0), normal(8, 4, 1), normal(6, 4, 2))
    save_embeddings(tmp_path / "out", data)
    (tmp_path / "out" / "tuned" / "00099.wav").touch()
    save_embeddings(tmp_path / "out", data)
    assert len(list((tmp_path / "out" / "tuned").glob("*.*"))) == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "song.wav").touch()
    for taken in (tmp_path / "mine", tmp_path / "mine" / "song.wav"):
        with pytest.raises(UserError, match="holds other files"):
            check_folder(taken)
    check_folder(tmp_path / "new")


@pytest.mark.parametrize(
    ("option", "folder"), [(None, None), ("false", None), ("true", "report/embeddings"), ("sets", "sets")]
)
def test_where_embeddings_go(option: str | None, folder: str | None) -> None:
    assert embeddings_folder(option, Path("report")) == (None if folder is None else Path(folder))


@pytest.mark.parametrize(
    ("embedder", "folder"),
    [
        ("CLAP laion/larger_clap_music", "larger_clap_music"),
        ("signal statistics (no CLAP)", "signal-statistics-no-CLAP"),
    ],
)
def test_the_name_of_an_embedding_is_one_folder(embedder: str, folder: str) -> None:
    assert model_name(embedder) == folder
