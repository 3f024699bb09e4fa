"""The files of one upload: their paths in the repository, and where they are here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from peft.utils import load_peft_weights

from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.header import save_with_header
from musicgen_dreamboothing.model.saved_adapter import name_base
from musicgen_dreamboothing.model.weight_files import AUDIOCRAFT
from musicgen_dreamboothing.sharing.card import Listening
from musicgen_dreamboothing.sharing.header import header_of
from musicgen_dreamboothing.sharing.runs import SHARED

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAYERS = "samples"
PROVENANCE = ("warm_start.json", "import.json", "merge.json")  # names and no paths
LOADABLE = ("adapter_config.json", "config.json", AUDIOCRAFT[0])


@dataclass
class Publication:
    """Files by their paths in the repository."""

    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Publication:
        """What is shared of a folder: weights, configuration, processor and card; never songs, tokens or logs.

        Raises:
            UserError: there is no model in it.
        """
        if not any((folder / name).is_file() for name in LOADABLE):
            raise UserError(f"{folder} holds no model: there is none of {', '.join(LOADABLE)}")
        patterns = (*SHARED, *AUDIOCRAFT, *PROVENANCE)
        paths = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
        return cls({path.name: path for path in paths})

    def add_players(self, listening: Listening | None) -> None:
        """Adds the sound files that the card plays."""
        for player in listening.players if listening is not None else []:
            self.files |= {f"{PLAYERS}/{name}": path for name, path in player.files()}


def republish_adapter(
    publication: Publication,
    folder: Path,
    staging: Path,
    adapter: SavedAdapter,
    checkpoint: Checkpoint,
    key_word: str | None,
    licence: str | None,
) -> None:
    """Puts the adapter's weights, as they are, and facts about it into one safetensors file, without private paths.

    Args:
        publication: that the two files go into.
        folder: of the adapter; its weights may be a `.bin` file.
        staging: a temporary folder.
        adapter: what is in the folder.
        checkpoint: its base.
        key_word: of its style.
        licence: of the base.
    """
    base = Path(checkpoint.name).resolve().name if checkpoint.is_local else checkpoint.name
    header = header_of(checkpoint, base, key_word, licence) | {"rank": str(adapter.config.r)}
    weights = {name: weight.contiguous() for name, weight in load_peft_weights(str(folder), device="cpu").items()}
    save_with_header(weights, staging / WEIGHTS, header)
    (staging / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    name_base(staging / CONFIG, checkpoint)
    if checkpoint.is_local:
        log(f"note: the adapter will name its base {base}, which is a folder of this machine")
        config = json.loads((staging / CONFIG).read_text(encoding="utf-8"))
        write_json(staging / CONFIG, config | {"base_model_name_or_path": base})
    publication.files |= {CONFIG: staging / CONFIG, WEIGHTS: staging / WEIGHTS}
