"""Separation by demucs' real code on small random models in demucs' own files."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from demucs.apply import BagOfModels, apply_model
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from demucs.hf import load_safetensors_model
from demucs.htdemucs import HTDemucs
from random_demucs import RATE, STEMS, random_demucs, save_pickle, save_safetensors

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.pretrained import demucs_files
from musicgen_dreamboothing.pretrained import separator as separating
from musicgen_dreamboothing.pretrained.separator import Separator, parse_stems, signature

CPU = torch.device("cpu")
ONE_FOR_EACH = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]  # as in htdemucs_ft


def song(seconds: float, channels: int = 2, seed: int = 0) -> Wave:
    """Tones over noise, left and right apart, `[C, S]`."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tones = np.sin(2 * np.pi * rng.uniform(100, 1500, (channels, 1)) * time)
    return (0.2 * tones + 0.05 * rng.standard_normal((channels, len(time)))).astype(np.float32)


def as_demucs_does(model: object, wave: Wave) -> dict[str, Wave]:
    """Stems of stereo at the model's rate by demucs' own function, without the mean that is given back to each."""
    mix = torch.from_numpy(wave)
    mean, deviation = mix.mean(0).mean(), mix.mean(0).std() + 1e-8
    found = apply_model(model, ((mix - mean) / deviation)[None], shifts=0)[0] * deviation
    return dict(zip(STEMS, found.numpy(), strict=True))


def open_model(path: Path, **options: object) -> Separator:
    return Separator(str(path), device=CPU, **options)


def keep(separator: Separator, wave: Wave, stems: Sequence[str], *progress: Callable[[float], None]) -> Wave:
    """Of a wave in one block."""
    return np.concatenate(list(separator.keep(lambda: [wave], stems, *progress)), axis=1)


def split(separator: Separator, wave: Wave) -> dict[str, Wave]:
    return {stem: keep(separator, wave, [stem]) for stem in separator.stems}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_safetensors(random_demucs(), tmp_path_factory.mktemp("demucs") / "955717e8.safetensors")


@pytest.fixture(scope="module")
def separator(path: Path) -> Separator:
    return open_model(path)


def save_bag(folder: Path, weights: list[list[float]], segments: Sequence[Fraction] = ()) -> BagOfModels:
    lengths = segments or [Fraction(1, 2)] * len(weights)
    models = [random_demucs(seed=number, segment=segment) for number, segment in enumerate(lengths)]
    for number, model in enumerate(models):
        save_safetensors(model, folder / f"sig{number}.safetensors")
    bag = {"models": [f"sig{number}" for number in range(len(weights))], "weights": weights}
    (folder / "bag.yaml").write_text(yaml.safe_dump(bag))
    return BagOfModels(models, weights)


@pytest.mark.parametrize("segments", [0.2, 1, 2.6])
@pytest.mark.parametrize("kind", [HTDemucs, HDemucs, Demucs])
def test_stems_are_those_of_demucs_itself(tmp_path, kind, segments):
    model = random_demucs(kind)
    wave = song(segments * float(model.segment))
    found = split(open_model(save_safetensors(model, tmp_path / "model.safetensors"), batch_size=3), wave)
    wanted = as_demucs_does(model, wave)
    for stem in ("drums", "bass", "vocals"):
        assert np.abs(wanted[stem]).max() > 1e-3
        np.testing.assert_allclose(found[stem], wanted[stem], atol=2e-6)
    np.testing.assert_allclose(found["other"], wave - wanted["drums"] - wanted["bass"] - wanted["vocals"], atol=4e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_all_stems_make_the_mix(separator, channels):
    wave = song(1.7, channels)
    stems = split(separator, wave)
    assert tuple(stems) == STEMS
    assert all(stem.shape == wave.shape and stem.dtype == np.float32 for stem in stems.values())
    assert all(np.abs(stem).max() > 0.01 for stem in stems.values())
    np.testing.assert_allclose(sum(stems.values()), wave, atol=1e-6)
    np.testing.assert_array_equal(keep(separator, wave, STEMS), wave)


def test_a_selection_and_its_complement_make_the_mix(path):
    separator, wave = open_model(path, batch_size=4), song(0.7)
    stems = split(separator, wave)
    selections = [kept for count in (1, 2, 3) for kept in itertools.combinations(STEMS, count)]
    found = {kept: keep(separator, wave, kept) for kept in selections}
    for kept, sums in found.items():
        np.testing.assert_allclose(sums, sum(stems[stem] for stem in kept), atol=1e-5)
        rest = found[tuple(stem for stem in STEMS if stem not in kept)]
        np.testing.assert_allclose(sums + rest, wave, atol=1e-5)


def test_by_default_vocals_are_subtracted(separator):
    wave = song(1.0)
    found = keep(separator, wave, [])
    np.testing.assert_array_equal(found, keep(separator, wave, ["other", "drums", "bass"]))
    np.testing.assert_allclose(wave - found, as_demucs_does(random_demucs(), wave)["vocals"], atol=2e-6)


def test_a_song_may_come_in_blocks_of_any_length(tmp_path, monkeypatch):
    """The models of the bag have segments of other lengths, and what is handed on has another one again."""
    save_bag(tmp_path, [[1, 1, 0, 0.5], [0, 1, 2, 0.5]], segments=(Fraction(1, 2), Fraction(2, 5)))
    separator, wave = open_model(tmp_path, batch_size=2), song(2.3)
    whole = keep(separator, wave, ["drums", "other"])
    for piece, sizes in ((1000, [700]), (1 << 20, [1, 9000, 333]), (5000, [50_000])):
        monkeypatch.setattr(separating, "PIECE", piece)
        ends = np.cumsum(list(itertools.islice(itertools.cycle(sizes), 100)))
        blocks = [block for block in np.split(wave, ends[ends < wave.shape[1]], axis=1) if block.size]
        found = list(separator.keep(lambda blocks=blocks: blocks, ["drums", "other"]))
        assert max(part.shape[1] for part in found) <= piece
        np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=1e-6)


def test_memory_does_not_grow_with_the_song(separator, monkeypatch):
    monkeypatch.setattr(separating, "PIECE", RATE)
    second = song(1.0)

    def peak(seconds: int) -> int:
        tracemalloc.start()
        total = sum(block.shape[1] for block in separator.keep(lambda: itertools.repeat(second, seconds), []))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == seconds * RATE
        return found

    assert peak(13) < peak(3) + 2 * second.nbytes  # the song grows by 10 of these


@pytest.mark.parametrize("kept", [["vocals"], ["drums", "bass", "other"]])
def test_loudness_follows_the_mix(separator, kept):
    wave = song(1.2)
    found = keep(separator, wave, kept)
    for gain in (0.01, 3.0):
        np.testing.assert_allclose(keep(separator, gain * wave, kept), gain * found, rtol=1e-3, atol=gain * 1e-5)


def test_an_offset_stays_in_the_rest(separator):
    wave = song(1.2)
    for kept, offset in ((["drums", "bass", "other"], 0.3), (["other"], 0.3), (["drums", "vocals"], 0.0)):
        shifted = keep(separator, wave + np.float32(0.3), kept)
        np.testing.assert_allclose(shifted, keep(separator, wave, kept) + offset, atol=1e-5)


def test_channels_are_separate_and_mono_is_possible(separator):
    mono = song(1.2, channels=1)
    twice = np.repeat(mono, 2, axis=0)
    found = keep(separator, twice, ["vocals"])
    np.testing.assert_allclose(keep(separator, mono, ["vocals"]), found.mean(0, keepdims=True), atol=1e-6)
    stereo = song(1.2)
    left, right = keep(separator, stereo, ["drums", "bass", "other"])
    assert np.corrcoef(left, stereo[0])[0, 1] > 2 * abs(np.corrcoef(left, stereo[1])[0, 1])
    assert np.corrcoef(right, stereo[1])[0, 1] > 2 * abs(np.corrcoef(right, stereo[0])[0, 1])


def test_a_mono_model_separates_stereo(tmp_path):
    separator = open_model(save_safetensors(random_demucs(audio_channels=1), tmp_path / "model.safetensors"))
    wave = song(0.9)
    left, right = keep(separator, wave, ["vocals"])
    np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(keep(separator, wave, []), wave - left, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4, 100])
def test_batches_change_nothing_but_the_number_of_calls(path, separator, size):
    wave = song(2.9)  # 8 segments
    one, many = list[float](), list[float]()
    np.testing.assert_allclose(
        keep(open_model(path, batch_size=size), wave, ["vocals"], many.append),
        keep(separator, wave, ["vocals"], one.append),
        atol=1e-6,
    )
    assert len(one) == 8
    assert len(many) == -(-8 // size)
    assert many == sorted(set(many))
    assert many[-1] == one[-1] == 1.0


def test_distant_segments_have_no_influence(separator):
    wave, other = song(3.0), song(3.0)
    other[:, 2 * RATE :] = 0
    other *= wave.mean(0).std() / other.mean(0).std()  # the mix is brought to one level as a whole
    gain = other[0, 0] / wave[0, 0]
    found = keep(separator, wave, ["vocals"])[:, :RATE]
    np.testing.assert_allclose(keep(separator, other, ["vocals"])[:, :RATE], gain * found, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 2999, 3001, 4001])
def test_the_length_is_kept(separator, samples):
    """A segment has 4000 samples, and the next one begins at 3000."""
    wave = song(1.0)[:, :samples]
    stems = split(separator, wave)
    assert all(stem.shape == wave.shape and np.isfinite(stem).all() for stem in stems.values())
    np.testing.assert_allclose(sum(stems.values()), wave, atol=1e-6)


def test_nothing_has_no_stems(separator):
    assert list(separator.keep(list, ["vocals"])) == []


def test_arrays_need_not_be_contiguous_or_writable(separator):
    wave = song(0.6)
    backwards = wave[:, ::-1].copy()[:, ::-1]
    backwards.flags.writeable = False
    np.testing.assert_array_equal(keep(separator, backwards, []), keep(separator, wave, []))


def test_silence_is_separated_into_silence(separator):
    for kept in (["vocals"], ["drums", "other"]):
        assert np.abs(keep(separator, np.zeros((2, RATE), np.float32), kept)).max() < 1e-6


def test_what_a_model_draws_is_seeded(tmp_path):
    path = save_safetensors(random_demucs(t_sin_random_shift=5000), tmp_path / "model.safetensors")
    wave = song(1.5)
    before = random.getstate()
    separator = open_model(path, seed=1)
    found = keep(separator, wave, ["vocals"])
    with ThreadPoolExecutor(3) as pool:
        for again in pool.map(lambda _: keep(separator, wave, ["vocals"]), range(3)):
            np.testing.assert_array_equal(again, found)
    np.testing.assert_allclose(keep(open_model(path, seed=1, batch_size=4), wave, ["vocals"]), found, atol=1e-6)
    other = open_model(path, seed=2)
    assert signature(str(path), seed=1) != signature(str(path), seed=2)
    assert np.abs(keep(other, wave, ["vocals"]) - found).max() > 1e-5
    assert random.getstate() == before


@pytest.mark.parametrize("weights", [ONE_FOR_EACH, [[1, 1, 0, 0.5], [0, 1, 2, 0.5]]])
def test_bags_are_weighted_as_demucs_does(tmp_path, weights):
    bag = save_bag(tmp_path, weights)
    wave, shares = song(0.8), list[float]()
    separator = open_model(tmp_path, batch_size=2)
    wanted = as_demucs_does(bag, wave)
    for stem in ("drums", "bass", "vocals"):
        np.testing.assert_allclose(keep(separator, wave, [stem]), wanted[stem], atol=2e-6)
    keep(separator, wave, ["bass", "vocals"], shares.append)
    assert shares == sorted(set(shares))
    assert shares[-1] == 1.0


def test_models_that_are_not_needed_are_left_out(tmp_path):
    save_bag(tmp_path, ONE_FOR_EACH)
    separator = open_model(tmp_path / "bag.yaml", batch_size=100)
    for kept, models in (([], 1), (["drums", "bass"], 2), (["other"], 3)):
        shares: list[float] = []
        keep(separator, song(0.6), kept, shares.append)
        assert len(shares) == models
        assert shares[-1] == 1.0


def test_models_of_other_stems(tmp_path):
    sources = ("vocals", "piano", "guitar")
    separator = open_model(save_safetensors(random_demucs(sources=sources), tmp_path / "model.safetensors"))
    wave = song(0.8)
    assert separator.stems == sources
    stems = split(separator, wave)
    np.testing.assert_allclose(sum(stems.values()), wave, atol=1e-6)
    np.testing.assert_allclose(wave - keep(separator, wave, []), stems["vocals"], atol=1e-6)
    alone = open_model(save_safetensors(random_demucs(sources=("vocals",)), tmp_path / "alone.safetensors"))
    np.testing.assert_array_equal(keep(alone, wave, ["vocals"]), wave)


def test_the_stand_in_is_what_demucs_itself_reads(path):
    again, model = load_safetensors_model(path), random_demucs()
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def with_numpys_old_name(path: Path) -> Path:
    """The file as it would be had numpy 1 written it."""
    old = path.with_name("old.th")
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(old, "w") as copy:
        for name in file.namelist():
            copy.writestr(name, file.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in old.read_bytes()
    return old


def test_pickled_models_are_the_same_models(tmp_path, separator):
    path = save_pickle(random_demucs(), tmp_path / "955717e8.th")
    wave = song(0.8)
    wanted = keep(separator, wave, ["vocals"])
    (tmp_path / "bag.yaml").write_text("models: [955717e8]")
    for model in (tmp_path, tmp_path / "bag.yaml", path, with_numpys_old_name(path)):
        np.testing.assert_array_equal(keep(open_model(model), wave, ["vocals"]), wanted)


def test_the_signature_follows_the_weights(tmp_path, path, monkeypatch):
    monkeypatch.setattr(demucs_files, "_read", lambda path: pytest.fail("loaded a model"))
    other = save_safetensors(random_demucs(seed=1), tmp_path / "other.safetensors")
    (tmp_path / "a.yaml").write_text("models: [other, other]\nweights: [[1, 1, 1, 1], [1, 1, 1, 1]]")
    (tmp_path / "b.yaml").write_text("models: [other, other]\nweights: [[1, 1, 1, 1], [2, 1, 1, 1]]")
    models = [str(model) for model in (path, other, tmp_path / "a.yaml", tmp_path / "b.yaml")]
    assert len({signature(model) for model in models}) == 4
    assert [signature(model) for model in models] == [signature(model) for model in models]


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def refusal(model: Path | str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        Separator(str(model), device=CPU, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("place", ["state", "klass", "training_args", "anywhere"])
def test_a_malicious_pickle_is_refused(tmp_path, place):
    path = save_pickle(random_demucs(), tmp_path / "evil.th", **{place: Malice(tmp_path / "owned")})
    assert "code of its own, which is never run" in refusal(path)
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert (tmp_path / "owned").exists()


def test_a_malicious_safetensors_is_refused(tmp_path):
    owned = tmp_path / "owned"
    evil = {"klass": "os.mkdir", "args": f'["{owned}"]', "kwargs": "{}"}
    assert "its class os.mkdir is unknown" in refusal(
        save_safetensors(random_demucs(), tmp_path / "a.safetensors", **evil)
    )
    assert not owned.exists()
    with pytest.raises(AttributeError):  # demucs itself makes the folder and then misses its weights
        load_safetensors_model(tmp_path / "a.safetensors")
    assert owned.exists()


def test_quantised_models_are_refused(tmp_path):
    path = save_safetensors(random_demucs(), tmp_path / "a.safetensors", structure='{"_class": "this.s"}')
    assert "quantised by diffq" in refusal(path)
    assert "quantised by diffq" in refusal(save_pickle(random_demucs(), tmp_path / "a.th", state={"__quantized": True}))


@pytest.mark.parametrize("klass", [Fraction, np.dtype])
def test_a_pickle_of_no_model_is_refused(tmp_path, klass):
    assert "is unknown" in refusal(save_pickle(random_demucs(), tmp_path / "a.th", klass=klass))


@pytest.mark.parametrize("name", ["a.th", "a.safetensors", "a.yaml", "song.mp3"])
@pytest.mark.parametrize("content", [b"", b"these are words\n" * 100])
def test_files_that_are_no_models(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(tmp_path / name)


def test_weights_that_do_not_fit_their_class(tmp_path):
    model = random_demucs()
    del model._init_args_kwargs[1]["channels"]
    assert "can't be read" in refusal(save_safetensors(model, tmp_path / "a.safetensors"))


def test_a_folder_holds_one_model(tmp_path, path):
    assert "holds no .yaml, .safetensors or .th" in refusal(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").symlink_to(path)
    assert "a.safetensors, b.safetensors; give the path of one" in refusal(tmp_path)
    (tmp_path / "bag.yaml").write_text("models: [missing]")
    assert "lacks missing.safetensors" in refusal(tmp_path)


def test_published_models_come_from_the_hubs_cache(tmp_path, path, separator):
    repository = tmp_path / "models--adefossez--HTDemucs"
    files = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    files.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(files.name)
    (files / "htdemucs.yaml").write_text("models: ['955717e8']")
    message = refusal("htdemucs", cache_dir=str(tmp_path))
    assert "htdemucs are not in the cache and can't be downloaded" in message
    assert "give a folder with the files of huggingface.co/adefossez/HTDemucs" in message
    (files / "955717e8.safetensors").symlink_to(path)
    found = Separator(device=CPU, cache_dir=str(tmp_path))
    wave = song(0.6)
    np.testing.assert_array_equal(keep(found, wave, []), keep(separator, wave, []))


@pytest.mark.parametrize("name", ["htdemucs-ft", "mdx_q", "https://example.com/a.th", ""])
def test_an_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(name)
    if name:
        assert f"no demucs model {name!r}; possible are a folder, a file, and hdemucs_mmi, htdemucs, " in message
        assert "_q" not in message.removeprefix(f"no demucs model {name!r}")


def test_demucs_is_an_extra(path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(path) == "separation needs: pip install 'musicgen-dreamboothing[separation]'"


def test_names_of_stems():
    assert parse_stems(["vocals", "drums", "vocals"], STEMS) == ("drums", "vocals")
    assert parse_stems([], STEMS) == ("drums", "bass", "other")
    with pytest.raises(
        UserError, match="--keep_stems guitar is unknown to this model; possible are drums, bass, other, voc"
    ):
        parse_stems(["drums", "guitar"], STEMS)
    with pytest.raises(UserError, match="no vocals to remove; choose --keep_stems from speech, noise"):
        parse_stems([], ["speech", "noise"])


def test_a_wrong_stem_is_named_before_any_work(separator):
    with pytest.raises(UserError, match="--keep_stems voice is unknown"):
        keep(separator, song(0.5), ["voice"])
