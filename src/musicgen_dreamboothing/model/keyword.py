"""Measures how much an instance prompt already means to a base: by its tokens and by the base's output.

DreamBooth needs an identifier with a weak prior in the language model and in the generator (Ruiz et al. 2022,
"Rare-token Identifiers"): a word with a meaning has to be unlearned first, and its meaning is lost to other prompts.
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

if TYPE_CHECKING:  # `prepare` imports this module, and needs no adapters
    from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM

MADE_UP = ("zxqv", "flornt", "qaxjy", "trevuld", "gombrik", "ysselnax")  # references: words of no language
CONTEXTS = ("{}", "{} track", "{} at 120 bpm")  # the effect of a word alone may be an accident of its letters
CROPS, CROP_SECONDS = 2, 1.0  # of music that the base continues
COMMON_BITS = 20.0  # one piece of T5's vocabulary has 18.4 at most; two have less if both are very common
MIN_PROBABILITY, MIN_DISTANCE = 1e-9, 1e-6  # smaller values are rounding; distances are in nats
STRONG = 2.5  # times the score of the made-up word with the largest effect


@dataclass(frozen=True)
class Meaning:
    """How much a word changes the base's prediction, where made-up words have 1 on average.

    Attributes:
        score: of the word.
        reference_spread: the largest score of a made-up word.
    """

    score: float
    reference_spread: float

    @property
    def is_strong(self) -> bool:
        return self.score > STRONG * self.reference_spread


def texts_of(instance_prompt: str) -> list[str]:
    """The texts whose states `keyword_note` needs."""
    return [context.format(word) for word in (instance_prompt, *MADE_UP) for context in CONTEXTS]


def surprisal(pieces: Sequence[int], vocabulary: int) -> float:
    """Bits of a word from the ids of its pieces, under Zipf's law.

    sentencepiece sorts a vocabulary by frequency, so an id is a rank n, with a probability of 1 / (n H) where H is the
    harmonic number of the vocabulary's size.

    >>> round(surprisal([2480], 32_100), 1), round(surprisal([3, 172, 226, 102], 32_100), 1)
    (14.7, 35.2)
    """
    harmonic = math.log(vocabulary) + 0.5772
    return sum(math.log2(max(piece, 1) * harmonic) for piece in pieces)


def is_common(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether all words of an instance prompt are frequent: T5 has a piece for each of them."""
    words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in prompt.split()]
    return all(surprisal(pieces, len(tokenizer)) < COMMON_BITS for pieces in words)


def is_readable(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether T5 has a piece for every letter; it cannot tell apart words of other letters."""
    return tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"]


def rare_word(prompt: str) -> str:
    """A made-up word that resembles the prompt.

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
    """Compares the base's predictions of the next codes for a word and for words without meaning.

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
    distances = torch.zeros(1 + len(states_of_references))
    for states in zip(states_of_word, *states_of_references, strict=True):
        distances += _divergences(torch.stack([_predicted(model, inputs, labels, one) for one in states])).cpu()
    scale = max(float(distances[1:].mean()), MIN_DISTANCE)
    return Meaning(float(distances[0]) / scale, max(1.0, float(distances[1:].max()) / scale))


def _crops(codes: Sequence[np.ndarray], checkpoint: Checkpoint) -> list[torch.Tensor]:
    """The middles of evenly spaced clips, `[K, T]` of one length."""
    rows = np.unique(np.linspace(0, len(codes) - 1, CROPS).round().astype(int))
    clips = [torch.as_tensor(np.asarray(codes[int(row)]).astype(np.int64)) for row in rows]
    frames = round(CROP_SECONDS * checkpoint.frame_rate) + max(checkpoint.delay)
    frames = min(frames, *(clip.shape[1] for clip in clips))
    starts = [(clip.shape[1] - frames) // 2 for clip in clips]
    return [clip[:, start : start + frames] for clip, start in zip(clips, starts, strict=True)]


def _predicted(
    model: TextLM | MelodyLM, inputs: torch.Tensor, labels: torch.Tensor, states: np.ndarray
) -> torch.Tensor:
    """Probabilities of all codes at each position with a label, `[N, V]`."""
    text, mask = (part.to(model.device) for part in pad_states([states] * len(inputs)))
    keep = torch.ones(len(inputs), dtype=torch.bool, device=model.device)
    logits = model.logits(model.hidden_states(inputs, model.condition(text, mask, keep)))
    return logits[labels != IGNORED].float().softmax(-1)


def _divergences(probabilities: torch.Tensor) -> torch.Tensor:
    """KL to the mean of the (other) references, of a word and of R references: `[1 + R, N, V]` -> `[1 + R]`."""
    references = probabilities[1:]
    total = references.sum(0, keepdim=True)
    others = torch.cat([total / len(references), (total - references) / (len(references) - 1)])
    surplus = probabilities.clamp_min(MIN_PROBABILITY).log() - others.clamp_min(MIN_PROBABILITY).log()
    return (probabilities * surplus).sum(-1).mean(-1)


def keyword_note(
    model: TextLM | MelodyLM,
    checkpoint: Checkpoint,
    codes: Sequence[np.ndarray],
    states: Mapping[str, np.ndarray],
    instance_prompt: str,
    class_prompt: str | None = None,
) -> str | None:
    """A note on an instance prompt that is a bad choice; None for a good one.

    `states` are those of `texts_of(instance_prompt)`, the other arguments those of `meaning_of`.
    """
    tokenizer, rare = load_tokenizer(checkpoint), rare_word(instance_prompt)
    if not is_readable(tokenizer, instance_prompt):
        return (
            f"{instance_prompt!r} has letters that the text encoder of this base doesn't know, so it can't tell such "
            f"words apart; use a word of plain letters such as {rare!r}"
        )
    word, *references = (
        [states[context.format(word)] for context in CONTEXTS]
        for word in dict.fromkeys((instance_prompt, *MADE_UP))  # a made-up word may be chosen itself
    )
    meaning = meaning_of(model, checkpoint, codes, word, references)
    if not meaning.is_strong:
        return None
    tokens = "well known" if is_common(tokenizer, instance_prompt) else "rare"
    remedy = "" if class_prompt else f" with --class_prompt {shlex.quote(instance_prompt)}"
    return (
        f"{instance_prompt!r} already means much to this base (by its tokens: {tokens}; by its output: "
        f"{meaning.score:.0f}x a made-up word): training will pull that meaning towards your songs; use a rare word "
        f"such as {rare!r}{remedy} to keep the two apart"
    )
