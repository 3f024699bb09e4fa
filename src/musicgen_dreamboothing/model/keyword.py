"""What a base already makes of a key-word: of its letters, and in its music. Knows nothing of songs.

DreamBooth asks for an identifier with a weak prior in the language model and in the generator (Ruiz et al. 2022,
"Rare-token Identifiers"): what a word means already has to be unlearned first, and is lost to other prompts.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_tokenizer
from musicgen_dreamboothing.model.delay import IGNORED, training_steps
from musicgen_dreamboothing.model.text import pad_states

if TYPE_CHECKING:  # what prepares songs takes its words from here, and needs no adapters
    from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM

MADE_UP = ("zxqv", "flornt", "qaxjy", "trevuld", "gombrik", "ysselnax")  # the yardstick: no language has them
CONTEXTS = ("{}", "{} track", "{} at 120 bpm")  # of a word: what it does alone may be an accident of its letters
CROPS, CROP_SECONDS = 2, 1.0  # of music that the base listens to
COMMON_BITS = 20.0  # one piece of T5's vocabulary, whichever, has 18.4 at most; two have less if both are very common
LEAST_CHANCE, LEAST_DISTANCE = 1e-9, 1e-6  # what lies below is rounding; distances are in nats
STRONG = 2.5  # times what the most telling of the made-up words does


@dataclass(frozen=True)
class Meaning:
    """How much a word changes what a base expects, where made-up words change it by 1 on average.

    Attributes:
        score: of the word.
        reference_spread: of the made-up word that changes most.
    """

    score: float
    reference_spread: float

    @property
    def is_strong(self) -> bool:
        return self.score > STRONG * self.reference_spread


def texts_of(instance_prompt: str) -> list[str]:
    """All texts whose states `keyword_note` needs."""
    return [context.format(word) for word in (instance_prompt, *MADE_UP) for context in CONTEXTS]


def surprisal(pieces: Sequence[int], vocabulary: int) -> float:
    """Bits of a word in pieces of a vocabulary of this size, as if they came by Zipf's law.

    sentencepiece sorts a vocabulary by frequency, so that an id is a rank n, with a probability of 1 / (n H) where H
    is the harmonic number of the size. Few pieces with low ids give few bits.

    >>> round(surprisal([2480], 32_100), 1), round(surprisal([3, 172, 226, 102], 32_100), 1)
    (14.7, 35.2)
    """
    harmonic = math.log(vocabulary) + 0.5772
    return sum(math.log2(max(piece, 1) * harmonic) for piece in pieces)


def is_common(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether T5 knows all words of a key-word well, which it then keeps in a piece of their own."""
    words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in prompt.split()]
    return all(surprisal(pieces, len(tokenizer)) < COMMON_BITS for pieces in words)


def is_readable(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether T5 has a piece for every letter; all words of other letters are one and the same to it."""
    return tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"]


def rare_word(prompt: str) -> str:
    """A word that reminds of the prompt and shares no piece of meaning with it.

    >>> rare_word("punk"), rare_word("I O U")
    ('zxpnk', 'zxqv')
    """
    consonants = re.sub("[^bcdfghjklmnpqrstvwxz]", "", prompt.lower())
    return f"zx{consonants[:4] or 'qv'}"


@torch.no_grad()
def meaning_of(
    model: TextLM | MelodyLM,
    checkpoint: Checkpoint,
    codes: Sequence[np.ndarray],
    states_of_word: Sequence[np.ndarray],
    states_of_references: Sequence[Sequence[np.ndarray]],
) -> Meaning:
    """How far a word moves the base's expectation of the next codes from what words without meaning make of it.

    The distance is KL(word || mean of the references) in nats, over the frames of a few crops and over contexts; that
    of a reference is to the mean of the other references.

    Args:
        model: the base, without an adapter.
        checkpoint: its configuration.
        codes: of clips, each `[K, T]` without the delay pattern; some are chosen.
        states_of_word: text states `[L, D_text]` of the word in each context.
        states_of_references: those of two or more words without meaning, in the same contexts.
    """
    pieces = [training_steps(crop, checkpoint.delay, checkpoint.start_token_id) for crop in _crops(codes, checkpoint)]
    inputs, labels = (torch.stack(part).to(model.device) for part in zip(*pieces, strict=True))
    apart = torch.zeros(1 + len(states_of_references))
    for states in zip(states_of_word, *states_of_references, strict=True):
        apart += _divergences(torch.stack([_expected(model, inputs, labels, one) for one in states])).cpu()
    usual = max(float(apart[1:].mean()), LEAST_DISTANCE)
    return Meaning(float(apart[0]) / usual, max(1.0, float(apart[1:].max()) / usual))


def _crops(codes: Sequence[np.ndarray], checkpoint: Checkpoint) -> list[torch.Tensor]:
    """The middles of clips that lie evenly among all, `[K, T]` each and of one length."""
    rows = np.unique(np.linspace(0, len(codes) - 1, CROPS).round().astype(int))
    clips = [torch.as_tensor(np.asarray(codes[int(row)]).astype(np.int64)) for row in rows]
    frames = round(CROP_SECONDS * checkpoint.frame_rate) + max(checkpoint.delay)
    frames = min(frames, *(clip.shape[1] for clip in clips))
    starts = [(clip.shape[1] - frames) // 2 for clip in clips]
    return [clip[:, start : start + frames] for clip, start in zip(clips, starts, strict=True)]


def _expected(model: TextLM | MelodyLM, inputs: torch.Tensor, labels: torch.Tensor, states: np.ndarray) -> torch.Tensor:
    """Probabilities of all codes at each place that has a label, `[N, V]`."""
    text, mask = (part.to(model.device) for part in pad_states([states] * len(inputs)))
    keep = torch.ones(len(inputs), dtype=torch.bool, device=model.device)
    logits = model.logits(model.hidden_states(inputs, model.condition(text, mask, keep)))
    return logits[labels != IGNORED].float().softmax(-1)


def _divergences(chances: torch.Tensor) -> torch.Tensor:
    """KL(it || mean of the references without it), of a word and of R references: `[1 + R, N, V]` -> `[1 + R]`."""
    references = chances[1:]
    total = references.sum(0, keepdim=True)
    others = torch.cat([total / len(references), (total - references) / (len(references) - 1)])
    surplus = chances.clamp_min(LEAST_CHANCE).log() - others.clamp_min(LEAST_CHANCE).log()
    return (chances * surplus).sum(-1).mean(-1)


def keyword_note(
    model: TextLM | MelodyLM,
    checkpoint: Checkpoint,
    codes: Sequence[np.ndarray],
    states: Mapping[str, np.ndarray],
    instance_prompt: str,
    class_prompt: str | None = None,
) -> str | None:
    """What to tell a person of a key-word that serves badly; None for a good one.

    `states` are those of `texts_of(instance_prompt)`; the rest is as in `meaning_of`.
    """
    tokenizer, rare = load_tokenizer(checkpoint), rare_word(instance_prompt)
    if not is_readable(tokenizer, instance_prompt):
        return (
            f"{instance_prompt!r} has letters that the text encoder of this base doesn't know: all such words are the "
            f"same to it; a word of plain letters such as {rare!r} serves better"
        )
    word, *references = (
        [states[context.format(word)] for context in CONTEXTS]
        for word in dict.fromkeys((instance_prompt, *MADE_UP))  # one of ours may be chosen, and is none of the others
    )
    meaning = meaning_of(model, checkpoint, codes, word, references)
    if not meaning.is_strong:
        return None
    tokens = "well known" if is_common(tokenizer, instance_prompt) else "rare"
    remedy = "" if class_prompt else f" with --class_prompt {shlex.quote(instance_prompt)}"
    return (
        f"{instance_prompt!r} already means much to this base (by its tokens: {tokens}; by its output: "
        f"{meaning.score:.0f}x a made-up word): what it means will be pulled towards your songs; a rare word such as "
        f"{rare!r}{remedy} keeps the two apart"
    )
