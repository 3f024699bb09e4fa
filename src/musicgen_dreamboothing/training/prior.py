"""Prior preservation: music of the class, so that a model which learns a style forgets nothing of what is around it.

Ruiz et al. 2022, "DreamBooth", https://arxiv.org/abs/2208.12242, equation 2: besides the songs, a model is trained on
what it made of the class's name itself ("rock") before the training. Here that is made as tokens: no codec is needed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
from accelerate import PartialState

from musicgen_dreamboothing.arguments import KL, TrainArguments
from musicgen_dreamboothing.console import UserError, log, plural
from musicgen_dreamboothing.data.prepare import prepare_songs
from musicgen_dreamboothing.data.tokens.melodies import NONE
from musicgen_dreamboothing.data.tokens.tables import Tables, load_tables
from musicgen_dreamboothing.device import release_memory
from musicgen_dreamboothing.files import write_array
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.model.adapter import SPLITTING
from musicgen_dreamboothing.model.checkpoint import Checkpoint

FOLDER, OWN, STATES, LENGTHS = "class", "own", "states.npy", "lengths.npy"
SAMPLING = Sampling()  # class clips are made as `generate` makes them


def check_prior(options: TrainArguments) -> None:
    """What can be known to fail fails before anything is loaded.

    Raises:
        UserError: the class has no name, or an option doesn't go with another.
    """
    if not options.with_prior_preservation:
        return
    if not _prompts(options):
        raise UserError(
            "--with_prior_preservation needs the class that your style belongs to, e.g. --class_prompt rock"
        )
    if options.class_data_dir and not Path(options.class_data_dir).expanduser().exists():
        raise UserError(f"--class_data_dir {options.class_data_dir}: no such folder; it holds songs of the class")
    if options.prior == KL and not options.use_lora:
        raise UserError("--prior kl compares with the base below the adapter, and --use_lora false has none")
    if options.prior == KL and SPLITTING.fullmatch(options.lora_init):
        raise UserError(
            f"--prior kl needs the base as it was, which --lora_init {options.lora_init} changes; choose one"
        )


def prior_tables(options: TrainArguments, checkpoint: Checkpoint, prepared: Path, seconds: float) -> Tables:
    """Clips of the class with their captions: a person's own songs, or what the base makes of the class prompt.

    They are kept beside the tokens of the songs, in `class/`, and made once for each base, prompt, seed and length; a
    call that was cut short goes on. Under `accelerate launch` the processes share the work.

    Args:
        options: of the training.
        checkpoint: the base.
        prepared: the prepared folder of the songs.
        seconds: length of a clip that is made.
    """
    if options.class_data_dir:
        return _own(options, checkpoint, prepared / FOLDER / OWN)
    frames = max(1, round(seconds * checkpoint.frame_rate))
    folder = prepared / FOLDER / _key(options, checkpoint, frames)
    _make_missing(options, checkpoint, folder, frames / checkpoint.frame_rate)
    return _read(options, checkpoint, folder)


def _own(options: TrainArguments, checkpoint: Checkpoint, folder: Path) -> Tables:
    """A folder of songs, prepared as the others are, under the name of the class."""
    own, name = copy.copy(options), _prompts(options)[0]
    own.instance_prompt, own.class_prompt, own.word_dropout = name, None, 0.0
    own.eval_split_name = own.target_audio_column_name = own.text_column_name = own.dataset_config_name = None
    own.push_metadata_repo_id = None
    own.melody = NONE
    log(f"songs of the class {name!r}:")
    with_states = options.freeze_text_encoder
    songs = prepare_songs(str(options.class_data_dir), folder, own, checkpoint, text_states=with_states)
    return load_tables(folder, songs.rows, checkpoint, eval_fraction=0, seed=options.seed, text_states=with_states)


def _key(options: TrainArguments, checkpoint: Checkpoint, frames: int) -> str:
    """Changes with whatever the clips depend on, but for how many there are."""
    depends_on = [checkpoint.identity, _prompts(options), options.seed, frames, asdict(SAMPLING)]
    return hashlib.blake2b(json.dumps(depends_on).encode(), digest_size=8).hexdigest()


def _make_missing(options: TrainArguments, checkpoint: Checkpoint, folder: Path, seconds: float) -> None:
    """Makes the clips that are not there yet, each process its share, and keeps each as soon as it is drawn."""
    state, prompts = PartialState(), _prompts(options)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(options.num_class_clips) if not _path(folder, number).is_file()]
    state.wait_for_everyone()  # all have looked before one of them writes
    share = missing[state.process_index :: state.num_processes]
    if share or (state.is_main_process and not (folder / LENGTHS).is_file()):
        log(f"the base makes {plural(len(missing), 'clip')} of {', '.join(map(repr, prompts))}, once")
        source = checkpoint.source
        generator = Generator(
            source.name,
            revision=source.revision,
            cache_dir=source.cache_dir,
            token=source.token,
            device=options.device,
            dtype=options.dtype,
        )
        numbers = {_clip(prompts, number): number for number in share}
        drawn = generator.codes(list(numbers), seconds=seconds, seed=options.seed, sampling=SAMPLING)
        for clip, codes in drawn:
            write_array(_path(folder, numbers[clip]), codes.numpy().astype(np.uint16))
        if state.is_main_process:
            write_array(folder / STATES, np.concatenate(generator.text_states(prompts)))
            write_array(folder / LENGTHS, np.array([len(states) for states in generator.text_states(prompts)]))
        del generator
        release_memory()
    state.wait_for_everyone()


def _prompts(options: TrainArguments) -> list[str]:
    """What the class is called, each name once."""
    return list(dict.fromkeys(prompt for prompt in (options.class_prompt, *options.class_prompts) if prompt))


def _clip(prompts: list[str], number: int) -> tuple[str, int]:
    """Prompt and variation of a clip: they take turns."""
    return prompts[number % len(prompts)], number // len(prompts)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def _read(options: TrainArguments, checkpoint: Checkpoint, folder: Path) -> Tables:
    prompts, rows = _prompts(options), []
    for number in range(options.num_class_clips):
        codes = np.load(_path(folder, number))
        name = f"{folder.name}/{number:05d}"
        times = {"start": 0.0, "seconds": codes.shape[1] / checkpoint.frame_rate}
        rows.append(
            {"source": name, "digest": name, "text": _clip(prompts, number)[0], "variants": [], "codes": codes, **times}
        )
    captions = None
    if options.freeze_text_encoder:
        states = np.split(np.load(folder / STATES), np.load(folder / LENGTHS).cumsum()[:-1])
        captions = datasets.Dataset.from_list(
            [
                {"text": prompt, "states": rows_of_prompt, "length": len(rows_of_prompt)}
                for prompt, rows_of_prompt in zip(prompts, states, strict=True)
            ]
        )
    clips = datasets.Dataset.from_list(rows)
    return Tables(clips, clips.select([]), captions)
