"""The command line: one verb for each public function. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from musicgen_dreamboothing import __version__
from musicgen_dreamboothing.console import UserError, discard_output, one_line, print_any_text, printed, quiet_libraries
from musicgen_dreamboothing.signals import signal_number, sigterm_interrupts

PROGRAM = "musicgen-dreamboothing"
FUNCTIONS = {
    "prepare": "data.prepare",
    "doctor": "data.doctor.checkup",
    "train": "training.train",
    "generate": "generation.generate",
    "evaluate": "evaluation.evaluate",
    "merge": "sharing.merge",
    "warm-start": "training.warm_start",
    "export": "sharing.export",
    "import": "sharing.import_checkpoint",
    "extract": "sharing.extract",
    "push": "training.push",
    "demo": "demo.chain",
}  # the module of each verb's function, which has the verb's name, with _ for -
FUNCTION_NAMES = {"import": "import_checkpoint"}  # of verbs that are words of Python
ABOUT = {
    "prepare": "Cut songs into clips, caption them and encode them to tokens.",
    "doctor": "Examine a prepared folder: what in it hurts a training, on one screen and as a page.",
    "train": "Fine-tune MusicGen on songs or a prepared folder; options may stand in a JSON or YAML file.",
    "generate": "Make new music with an adapter, a full fine-tune or a base checkpoint.",
    "evaluate": "Compare a run with its base: did it learn the style, does it still follow prompts, is it original?",
    "merge": "Merge adapters, each with a strength, into their base: a model that transformers plays without PEFT.",
    "warm-start": "Make a stereo base of a mono checkpoint, where no stereo checkpoint is published.",
    "export": "Write a model, or a base with an adapter merged in, in audiocraft's format, which other players read.",
    "import": "Turn a checkpoint of audiocraft into a model to train on and to play; nothing in it is executed.",
    "extract": "Make a LoRA adapter of the difference between a full fine-tune and its base.",
    "push": "Upload a finished run with a card that plays it; what goes up is listed first.",
    "demo": "Teach the built-in tiny checkpoint a new style, offline, and show before and after on one page.",
}
USAGE = {
    "prepare": "prepare SONGS --output_dir DIR [--option value ...]",
    "doctor": "doctor FOLDER",
    "train": "train [FILE.json|FILE.yaml] [--option value ...]",
    "generate": 'generate MODEL "prompt" ["prompt" ...] [--option value ...]',
    "evaluate": "evaluate RUN [--option value ...]",
    "merge": "merge RUN [ADAPTER:STRENGTH ...] --output_dir DIR [--option value ...]",
    "warm-start": "warm-start BASE --output_dir DIR [--option value ...]",
    "export": "export MODEL --output_dir DIR [--option value ...]",
    "import": "import CHECKPOINT --base BASE --output_dir DIR [--option value ...]",
    "extract": "extract FINETUNE --base BASE --output_dir DIR [--option value ...]",
    "push": "push RUN --hub_model_id you/punk [--private]",
    "demo": "demo [--output_dir DIR]",
}
# What the system says, or torch of a checkpoint that it could not write to the end.
DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "PytorchStreamWriter failed", "unexpected pos")
STOPPED = {
    "prepare": "stopped; what is done is saved, and the same command resumes from there",
    "doctor": "stopped; what was measured is saved, and the same command resumes from there",
    "train": "stopped; the same command resumes from the last checkpoint",
    "generate": "stopped; the finished clips are saved",
    "evaluate": "stopped; the finished clips are saved, and the same command resumes from there",
    **dict.fromkeys(("merge", "warm-start", "export", "import", "extract"), "stopped; nothing was written"),
    "push": "stopped; the same command continues the upload",
    "demo": "stopped; what is done is saved, and the same command resumes from there",
}
SIGNALLED = 128  # and the number of the signal: what a shell expects of a program that one has ended
# What takes less memory, for each verb.
SMALLER = {
    "prepare": "try --encode_batch_size 1 --preprocessing_num_workers 1, or --max_duration_in_seconds 15",
    "doctor": "try --preprocessing_num_workers 1, or --preview false",
    "train": (
        "try --recompute full --per_device_train_batch_size 1, --quantization nf4, shorter crops (--crop_seconds 15), "
        "or a smaller --model_name_or_path; --plan prints what a step takes"
    ),
    "generate": "try --batch_size 1, shorter clips (--seconds 10), or --quantization int8",
    "evaluate": "try --batch_size 1, or shorter clips (--seconds 5)",
    **dict.fromkeys(
        ("merge", "warm-start", "export", "import", "extract", "push", "demo"),
        "close other programs, and run the same command again",
    ),
}
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for an error of one line, 130 after Ctrl-C, 143 after SIGTERM.

    Where nobody reads the output any more (`| head`), the work is finished without it. Where its bars have no
    reader either, it stops with 1 and without a traceback: what is done is kept.
    """
    words = list(sys.argv[1:] if words is None else words)
    print_any_text()
    try:
        return _main(words)
    except BrokenPipeError:
        return 1
    finally:
        _flush()


def _flush() -> None:
    """Empties the streams now: what can't be written any more would be a traceback at the interpreter's end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            discard_output(stream)


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    ask_for_huge_pages()
    ask_for_expandable_segments()
    return _guarded(words)


def ask_for_huge_pages() -> None:
    """Lets torch ask Linux for pages of 2 MB for its large tensors; it reads this when it makes its first tensor.

    On a CPU a training step gets and frees gigabytes; with pages of 4 KB a quarter of its time goes into their making.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def ask_for_expandable_segments() -> None:
    """Lets torch's CUDA allocator grow its segments; it reads this at its first allocation.

    Captions and last batches differ in length, and segments of fixed size fragment: a step that fits runs out of
    memory on a card of 6 to 8 GB. Any allocator setting of the user's own stays as it is. Windows, and ROCm before
    version 7, have no expandable segments and would warn.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR_SETTINGS):
        return
    torch = version("torch")
    if "rocm" not in torch:
        renamed = tuple(map(int, torch.split(".")[:2])) >= (2, 9)  # from there on the old name gives a warning
        os.environ[ALLOCATOR_SETTINGS[0 if renamed else 1]] = "expandable_segments:True"


def _help() -> str:
    lines = [f"{PROGRAM} {__version__}: teach MusicGen your own music", ""]
    for verb, about in ABOUT.items():
        lines += [f"  {USAGE[verb]}", f"      {about}"]
    return "\n".join([*lines, "", f"All options of a verb: {PROGRAM} VERB --help"])


def _run(verb: str, words: list[str]) -> None:
    if verb not in ABOUT:
        import difflib

        near = difflib.get_close_matches(verb, ABOUT, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown command {verb!r}; did you mean {near}? Commands: {', '.join(ABOUT)}")
    from musicgen_dreamboothing import arguments

    with quiet_libraries():
        options: object = arguments.parse(arguments.VERBS[verb], verb, ABOUT[verb], words)
        module = importlib.import_module(f"{__package__}.{FUNCTIONS[verb]}")
        getattr(module, FUNCTION_NAMES.get(verb, verb.replace("-", "_")))(options)


def _guarded(words: list[str]) -> int:
    """Prints errors that a user can correct as one line; all others keep their traceback, since they are our bugs."""
    try:
        with printed(), sigterm_interrupts():
            _run(words[0], words[1:])
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # under `accelerate launch` one process prints
            _fail(str(error) or STOPPED.get(words[0], "stopped"))
        return SIGNALLED + signal_number(error)
    except Exception as error:
        line = _line_for(error, words[0])
        if line is None:
            raise
        return _fail(line)
    return 0


def _line_for(error: Exception, verb: str) -> str | None:
    """One line for errors that come from the machine, not from our code; None for all others."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's, old or new

    from musicgen_dreamboothing.audio import AudioError
    from musicgen_dreamboothing.device import is_out_of_memory

    text = " ".join(str(error).split())
    if isinstance(error, AudioError):
        return text
    if is_out_of_memory(error):
        return f"out of memory; {SMALLER[verb]}"
    if any(sign in text for sign in DISK_FULL):
        return f"the disk is full ({text}); free some space and run the same command again"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed to write or read {error.filename}; choose another folder"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the name {one_line(str(error.filename), 60)!r} is too long for a file or folder"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, not a folder; choose another folder"
    if isinstance(error, HTTPError) or (type(error) is OSError and error.errno is None):  # transformers', on downloads
        return text
    return None


def _fail(text: str, code: int = 1) -> int:
    print(f"{PROGRAM}: {' '.join(text.splitlines())}", file=sys.stderr)  # names and values may hold line breaks
    return code
