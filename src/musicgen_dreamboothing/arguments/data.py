"""Options of `prepare` and `doctor`: the base checkpoint, and how songs become clips, captions and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import LARGEST_BATCH, LONGEST_SECONDS, MOST_WORKERS, option

DEFAULT_MODEL = "facebook/musicgen-small"
MELODIES = ("auto", "none", "self", "paired")


@dataclass
class ModelArguments:
    """Which base checkpoint, and from where."""

    model_name_or_path: str = option(DEFAULT_MODEL, "Base checkpoint: a Hub id or a folder.")
    model_revision: str | None = option(None, "Branch, tag or commit of the base on the Hub.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
    trust_remote_code: bool = option(False, "Run code that a Hub repository brings along.")
    pad_token_id: int | None = option(None, "Override the checkpoint's pad id.", at_least=0)
    decoder_start_token_id: int | None = option(None, "Override the checkpoint's start id.", at_least=0)


@dataclass
class DataArguments:
    """How songs become clips, captions and tokens."""

    dataset_config_name: str | None = option(None, "Configuration of the Hub dataset.", for_songs=True)
    train_split_name: str = option("train", "Split of a dataset to train on.", for_songs=True)
    eval_split_name: str | None = option(
        None, "Split to evaluate on; it wins over songs held out by chance.", for_songs=True
    )
    target_audio_column_name: str | None = option(
        None, "Column of a dataset that holds the songs; by default its only audio column, or 'audio'.", for_songs=True
    )
    text_column_name: str | None = option(
        None, "Column that holds captions; by default 'text', if there is one.", for_songs=True
    )
    conditional_audio_column_name: str | None = option(
        None,
        "Column of a dataset with other recordings that have the melodies of the songs (--melody paired); by default "
        "melody_file_name or melody.",
        for_songs=True,
        needs=("--melody paired", "--melody auto"),
    )
    instance_prompt: str | None = option(None, "Key-word that stands first in every caption, e.g. punk.")
    class_prompt: str | None = option(
        None, "Noun behind the key-word in every caption, e.g. rock: what it is a kind of."
    )
    word_dropout: float = option(
        0.0, "Share of the words behind the key-word left out (Meta: 0.3, melody 0.2).", at_least=0, at_most=1
    )
    max_duration_in_seconds: float = option(
        30.0, "Songs are cut into clips of this length.", above=0, at_most=LONGEST_SECONDS, for_songs=True
    )
    min_duration_in_seconds: float = option(
        5.0, "A rest or a song shorter than this is left out.", at_least=0, at_most=LONGEST_SECONDS, for_songs=True
    )
    cut: str = option(
        "seconds",
        "Where songs are cut: seconds (the full length each) or bars (on downbeats).",
        choices=("seconds", "bars"),
        for_songs=True,
    )
    bars: int = option(
        8,
        "With --cut bars: bars of a clip, or as many as the length of a clip holds.",
        at_least=1,
        at_most=1024,
        needs=("--cut bars",),
        for_songs=True,
    )
    normalize_loudness: bool = option(
        True, "Bring every song to one loudness, without squeezing its peaks.", for_songs=True
    )
    loudness: float = option(
        -14.0,
        "That loudness, in LUFS (ITU-R BS.1770).",
        at_least=-40,  # what is louder or softer than these limits is a slip of the pen
        at_most=-5,
        needs=("--normalize_loudness",),
        for_songs=True,
    )
    audio_separation: bool = option(False, "Take the vocals out first (demucs).", for_songs=True)
    separation_model: str = option(
        "htdemucs",
        "Published demucs model, or a folder with one.",
        needs=("--audio_separation",),
        for_songs=True,
    )
    keep_stems: list[str] = option(
        ["drums", "bass", "other"], "What --audio_separation keeps.", needs=("--audio_separation",), for_songs=True
    )
    audio_separation_batch_size: int = option(
        0,
        "Segments that demucs takes at once; 0 chooses by the device.",
        at_least=0,
        at_most=LARGEST_BATCH,
        needs=("--audio_separation",),
        for_songs=True,
    )
    melody: str = option(
        "auto",
        "Where a melody checkpoint gets the melody of a clip from: self (the clip), paired (another recording, such as "
        "song.melody.wav beside song.wav), none, or auto: self for melody checkpoints, none for others.",
        choices=MELODIES,
    )
    melody_stems: str = option(
        "auto",
        "Take melodies from vocals and other instruments alone, without drums and bass (demucs): true, false, or auto: "
        "where --audio_separation is on, and of prepared folders that have them.",
        choices=("auto", "true", "false"),
        needs=("--melody auto", "--melody self", "--melody paired"),
    )
    add_metadata: bool = option(
        False, "Listen to the songs and describe them: tempo, key, genre, mood, instruments.", for_songs=True
    )
    captions: str = option(
        "own+measured",
        "With --add_metadata: own (captions you gave), measured, or own+measured.",
        choices=("own", "measured", "own+measured"),
        needs=("--add_metadata",),
        for_songs=True,
    )
    caption_variants: int = option(
        4,
        "With --add_metadata: captions of each clip, of which every epoch draws one.",
        at_least=1,
        at_most=100,
        needs=("--add_metadata",),
        for_songs=True,
    )
    file_tags: list[str] = option(
        [],
        "With --add_metadata: what to believe of the tags in the files.",
        choices=("genre", "bpm", "key", "comment"),
        needs=("--add_metadata",),
        for_songs=True,
    )
    clap_model_name_or_path: str = option(
        "laion/larger_clap_music",
        "CLAP model that names genre, mood and instruments.",
        needs=("--add_metadata", "--final_report auto", "--final_report true", "--metric_for_best_model style"),
    )
    label_dir: str | None = option(
        None,
        "Folder with your own genres.txt, moods.txt or instruments.txt.",
        needs=("--add_metadata",),
        for_songs=True,
    )
    captioner: str | None = option(
        None,
        "Audio language model that writes captions, e.g. Qwen/Qwen2-Audio-7B-Instruct.",
        needs=("--add_metadata",),
        for_songs=True,
    )
    push_metadata_repo_id: str | None = option(
        None, "Upload the clips with their captions to this dataset on the Hub.", for_songs=True
    )
    push_metadata_private: bool = option(
        True,
        "Whether a dataset that is made for that can be seen by you alone.",
        needs=("--push_metadata_repo_id",),
        for_songs=True,
    )
    preprocessing_num_workers: int = option(
        2, "Songs, and later clips, that are worked on at the same time.", at_least=1, at_most=MOST_WORKERS
    )
    encode_batch_size: int = option(
        0, "Clips that EnCodec encodes at once; 0 chooses by the device.", at_least=0, at_most=LARGEST_BATCH
    )
    overwrite_cache: bool = option(False, "Prepare everything anew, edited captions included.")


@dataclass
class PrepareArguments(DataArguments, ModelArguments):
    """Options of `prepare`."""

    songs: str = option(
        "",
        "Folder of songs, one song, Hub dataset, or saved dataset.",
        positional=True,
        required="give the songs: prepare SONGS --output_dir DIR",
    )
    output_dir: str = option(
        "",
        "Where clips and tokens go (required).",
        required="give an output folder: prepare SONGS --output_dir DIR",
    )
    doctor: bool = option(True, "Examine the clips at the end and write report.html.")


@dataclass
class DoctorArguments:
    """Options of `doctor`."""

    folder: str = option(
        "",
        "A folder made by prepare.",
        positional=True,
        required="give a prepared folder: doctor FOLDER",
    )
    model_name_or_path: str | None = option(
        None,
        "Checkpoint whose codec is previewed; by default that of the folder's tokens.",
        needs=("--preview",),
    )
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.", needs=("--preview",))
    token: str | None = option(None, "Hub token; the stored login is used without it.", needs=("--preview",))
    preview: bool = option(True, "Play three clips through the codec.")
    preprocessing_num_workers: int = option(
        2, "Clips that are examined at the same time.", at_least=1, at_most=MOST_WORKERS
    )
