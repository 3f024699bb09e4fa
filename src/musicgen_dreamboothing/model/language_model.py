"""The codebook language model without the encoders it does not need.

`loading.load_language_model` returns subclasses of transformers' MusicGen with two changes: parts that are not needed
(EnCodec always, T5 when text states are cached) are placeholders without weights, and `forward` returns the summed
cross-entropy of every clip and codebook instead of logits, from which the loss of any split of a batch is exact.
Parameter names are those of transformers, so that an adapter fits the original class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recompute
from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import ModelOutput

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.adapter import without_adapter
from musicgen_dreamboothing.model.checkpoint import EXAMPLES, MELODY, Checkpoint
from musicgen_dreamboothing.model.delay import IGNORED
from musicgen_dreamboothing.model.prefix import decode_shared, share_prefix
from musicgen_dreamboothing.model.recompute import LightRecompute

LOGITS_AT_ONCE = 1024  # rows; an fp32 copy of the logits of 2048 codes takes 8 MB


@dataclass
class CodebookLoss(ModelOutput):
    """Summed cross-entropy in nats and number of valid positions, both `[B, K]`."""

    nll: torch.Tensor | None = None
    count: torch.Tensor | None = None


@dataclass
class Conditioning:
    """A caption as the language model attends to it.

    Attributes:
        states: text family `[B, L, D]`; melody family `[B, C + L, D]`, chroma before text.
        mask: 1 for text states that are attended to `[B, L]`.
        lengths: number of text states of each clip without padding `[B]`.
        shared: number of positions at the start that are the same for all clips of the batch.
    """

    states: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    shared: int = 0


class PlaceholderEncoder(PreTrainedModel):
    """Takes the place of an encoder: its configuration, without weights."""

    config_class = None
    main_input_name = "input_ids"

    def get_output_embeddings(self) -> None:
        """None, as for any encoder."""

    def get_input_embeddings(self) -> None:
        """None: it has no weights."""


class _CodebookLM:
    """The common part of both families, which define `condition` and `hidden_states`."""

    main_input_name = "codes"

    config: Any
    decoder: Any
    text_encoder: Any
    enc_to_dec_proj: nn.Module
    # fp16 overflows in T5's feed-forward layers, and bf16 is less exact than cached text states.
    _keep_in_fp32_modules_strict = ("text_encoder",)
    light: LightRecompute | None = None  # set by `use_light_recompute`

    def use_light_recompute(self) -> None:
        """Recomputes outputs of normalisations and activations in the backward pass from now on."""
        self.light = LightRecompute(self.decoder.model.decoder)

    def forward(
        self,
        codes: torch.Tensor,
        labels: torch.Tensor,
        text_mask: torch.Tensor,
        keep_caption: torch.Tensor,
        text_states: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        base_states: torch.Tensor | None = None,
        melody: torch.Tensor | None = None,
    ) -> CodebookLoss:
        """The loss of delayed codes under teacher forcing.

        Args:
            codes: inputs of each step `[B, K, S]`, delayed and shifted (`delay.training_steps`).
            labels: target of each step `[B, K, S]`, -100 where there is none.
            text_mask: 1 for the tokens of a caption `[B, L]`.
            keep_caption: False where the caption is dropped for the null condition `[B]`.
            text_states: cached states of the text encoder `[B, L, D_text]`; or
            input_ids: tokens of the captions `[B, L]`, encoded here.
            base_states: `states` of the last P clips with the adapter switched off `[P, S, D]`. The loss of these clips
                is KL(base || model) of the next code's distribution instead of the cross-entropy.
            melody: pitch class of each chroma frame `[B, C]`; None for batches in which no clip has a melody.
        """
        with self.light.kept_small() if self.light is not None and torch.is_grad_enabled() else nullcontext():
            hidden = self.states(codes, text_mask, keep_caption, text_states, input_ids, melody)
            count = (labels != IGNORED).sum(-1)
            if base_states is None:
                return CodebookLoss(_summed_cross_entropy(hidden, self.decoder.lm_heads, labels), count)
            sizes = [len(hidden) - len(base_states), len(base_states)]
            (songs, rest), (targets, places) = hidden.split(sizes), labels.split(sizes)
            sums = [_summed_divergence(rest, base_states, self.decoder.lm_heads, places)]
            if len(songs):  # none if the micro-batch is a single clip
                sums.insert(0, _summed_cross_entropy(songs, self.decoder.lm_heads, targets))
            return CodebookLoss(torch.cat(sums), count)

    def states(
        self,
        codes: torch.Tensor,
        text_mask: torch.Tensor,
        keep_caption: torch.Tensor,
        text_states: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        melody: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The input of the heads at each step, `[B, S, D]`; arguments as of `forward`."""
        if text_states is None:
            text_states = self.text_encoder(input_ids=input_ids, attention_mask=text_mask).last_hidden_state
        return self.hidden_states(codes, self.condition(text_states, text_mask, keep_caption, melody))

    def condition(
        self,
        text_states: torch.Tensor,
        text_mask: torch.Tensor,
        keep_caption: torch.Tensor,
        melody: torch.Tensor | None = None,
    ) -> Conditioning:
        raise TypeError("a family's class defines this")

    def hidden_states(self, codes: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        raise TypeError("a family's class defines this")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[B, S, D]` -> `[B, K, S, V]`."""
        return torch.stack([head(hidden) for head in self.decoder.lm_heads], dim=1)

    def _project(self, text_states: torch.Tensor) -> torch.Tensor:
        text_states = text_states.to(self.decoder.dtype)
        same_width = self.config.text_encoder.hidden_size == self.config.decoder.hidden_size
        return text_states if same_width else self.enc_to_dec_proj(text_states)


class TextLM(_CodebookLM, MusicgenForConditionalGeneration):
    """The text family: captions are attended to by cross-attention."""

    def condition(
        self,
        text_states: torch.Tensor,
        text_mask: torch.Tensor,
        keep_caption: torch.Tensor,
        melody: torch.Tensor | None = None,
    ) -> Conditioning:
        """The null condition is an all-zero mask, as in transformers' guided `generate`.

        Raises:
            UserError: there is a melody.
        """
        if melody is not None:
            raise UserError(f"{self.name_or_path} takes no melody: it is not a melody checkpoint; try {EXAMPLES[-1]}")
        mask = text_mask * keep_caption[:, None].to(text_mask.dtype)
        states = self._project(text_states)
        states = states * mask[..., None].to(states.dtype)
        # A fully masked row gives NaN in some attention kernels. The states of a dropped caption are zero, so to
        # attend to the first one gives zero too.
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1)
        return Conditioning(states, mask, text_mask.sum(-1))

    def hidden_states(self, codes: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Codes `[B, K, S]` -> `[B, S, D]`."""
        return self.decoder.model(
            input_ids=codes.reshape(-1, codes.shape[-1]),
            encoder_hidden_states=conditioning.states,
            # four dimensions and bool: transformers uses it as it is, without reading its values on the host
            encoder_attention_mask=conditioning.mask[:, None, None].bool(),
            use_cache=False,
        ).last_hidden_state


class MelodyLM(_CodebookLM, MusicgenMelodyForConditionalGeneration):
    """The melody family: chroma and text come before the codes."""

    def __init__(self, *config: Any, **parts: Any) -> None:
        super().__init__(*config, **parts)
        share_prefix(self.decoder.model.decoder)

    def condition(
        self,
        text_states: torch.Tensor,
        text_mask: torch.Tensor,
        keep_caption: torch.Tensor,
        melody: torch.Tensor | None = None,
    ) -> Conditioning:
        """The null condition zeroes the text states and keeps their places, as in transformers' guided `generate`.

        Args:
            text_states: `[B, L, D_text]`.
            text_mask: 1 for the tokens of a caption `[B, L]`.
            keep_caption: False where the caption is dropped `[B]`.
            melody: pitch class of each chroma frame `[B, C]`, C that of the configuration; class 0 in every frame of a
                clip is the null melody. None: no clip has one.

        Raises:
            ValueError: the melody has another number of frames or clips.
        """
        states = self._project(text_states)
        keep = text_mask * keep_caption[:, None].to(text_mask.dtype)
        states = states * keep[..., None].to(states.dtype)
        chroma = (
            self._null_chroma().expand(len(states), -1, -1) if melody is None else self._chroma(melody, len(states))
        )
        shared = self.config.chroma_length if melody is None else 0
        return Conditioning(torch.cat([chroma, states], dim=1), keep, text_mask.sum(-1), shared)

    def _chroma(self, melody: torch.Tensor, clips: int) -> torch.Tensor:
        """The prefix of melodies `[B, C]` -> `[B, C, D]`."""
        if melody.shape != (clips, self.config.chroma_length):
            expected = (clips, self.config.chroma_length)
            raise ValueError(f"a melody of shape {tuple(melody.shape)} for {expected}: see chroma.fitted")
        return functional.embedding(melody, self._class_states(self.config.num_chroma))

    def _null_chroma(self) -> torch.Tensor:
        """The prefix of a clip without a melody, `[1, C, D]`: chroma class 0 in every frame."""
        return self._class_states(1)[None].expand(-1, self.config.chroma_length, -1)

    def _class_states(self, classes: int) -> torch.Tensor:
        """The states of a frame of each of the first pitch classes `[classes, D]`."""
        one_hot = torch.eye(classes, self.config.num_chroma, device=self.device, dtype=self.decoder.dtype)
        same_width = self.config.num_chroma == self.config.decoder.hidden_size
        return one_hot if same_width else self.audio_enc_to_dec_proj(one_hot)

    def hidden_states(self, codes: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Codes `[B, K, S]` -> `[B, S, D]`, without the prefix."""
        decoder, chroma = self.decoder.model.decoder, self.config.chroma_length
        embedded = sum(table(codes[:, k]) for k, table in enumerate(decoder.embed_tokens))
        sequence = torch.cat([conditioning.states, embedded], dim=1)
        # The codes come directly after each clip's own text, and the padding last: padding between them would shift the
        # codes' positions, so a clip's loss would depend on the other captions of its batch.
        starts = chroma + conditioning.lengths[:, None]
        place = torch.arange(sequence.shape[1], device=sequence.device)[None]
        padding = conditioning.states.shape[1] - starts
        sequence = _gather_rows(sequence, (place + padding * (place >= starts)).clamp(max=sequence.shape[1] - 1))
        places = starts + place[:, : codes.shape[-1]]
        if len(sequence) > 1 and conditioning.shared:
            return _gather_rows(decode_shared(decoder, sequence, chroma), places - chroma)
        return _gather_rows(decoder(inputs_embeds=sequence, use_cache=False).last_hidden_state, places)


def _gather_rows(sequence: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows of `[B, S, D]` by their places `[B, P]` -> `[B, P, D]`."""
    return sequence.gather(1, places[..., None].expand(-1, -1, sequence.shape[-1]))


def _summed_cross_entropy(hidden: torch.Tensor, heads: nn.ModuleList, labels: torch.Tensor) -> torch.Tensor:
    """`[B, S, D]` and `[B, K, S]` -> `[B, K]`."""

    def summed(labels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        columns = [
            functional.cross_entropy(
                head(hidden).float().flatten(0, 1), labels[:, k].flatten(), ignore_index=IGNORED, reduction="none"
            )
            for k, head in enumerate(heads)
        ]
        return torch.stack([column.view(len(hidden), -1).sum(-1) for column in columns], dim=1)

    return _in_chunks(summed, labels, hidden)


def _summed_divergence(
    hidden: torch.Tensor, base_states: torch.Tensor, heads: nn.ModuleList, labels: torch.Tensor
) -> torch.Tensor:
    """KL(base || model) in nats, summed over steps that have a label: `[B, S, D]` twice, `[B, K, S]` -> `[B, K]`."""

    def summed(labels: torch.Tensor, hidden: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        columns = []
        for k, head in enumerate(heads):
            target = functional.log_softmax(without_adapter(head)(base).float(), dim=-1)
            predicted = functional.log_softmax(head(hidden).float(), dim=-1)
            divergence = functional.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)
            columns.append((divergence * (labels[:, k] != IGNORED)).sum(-1))
        return torch.stack(columns, dim=1)

    return _in_chunks(summed, labels, hidden, base_states)


def _in_chunks(summed: Callable[..., torch.Tensor], labels: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
    """The sum of `summed(labels, *states)` `[B, K]` over chunks of steps.

    Logits are recomputed in the backward pass, so that only those of one chunk are in memory.
    """
    steps = max(1, LOGITS_AT_ONCE // len(labels))
    parts = zip(labels.split(steps, dim=2), *(part.split(steps, dim=1) for part in states), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([summed(*part) for part in parts]).sum(0)
    return torch.stack([recompute(summed, *part, use_reentrant=False) for part in parts]).sum(0)


def language_model_of(
    checkpoint: Checkpoint, *, with_text_encoder: bool
) -> tuple[type[PreTrainedModel], dict[str, Any]]:
    """The class for a checkpoint, and placeholders for the parts that are not loaded.

    Dropout is set to 0, as audiocraft trained these models; transformers' configurations have 0.1.
    """
    config = checkpoint.config
    config.decoder.dropout = config.decoder.attention_dropout = config.decoder.activation_dropout = 0.0
    config.text_encoder.dropout_rate = 0.0
    placeholders = {"audio_encoder": PlaceholderEncoder(config.audio_encoder)}
    if not with_text_encoder:
        placeholders["text_encoder"] = PlaceholderEncoder(config.text_encoder)
    return (MelodyLM if config.model_type == MELODY else TextLM), placeholders


def empty_language_model(checkpoint: Checkpoint, *, with_text_encoder: bool) -> Any:
    """The language model on the CPU with weights that take no memory: one zero, expanded to their sizes.

    Not on torch's meta device, as PEFT puts adapters on the device of their layers.
    """
    model_class, placeholders = language_model_of(checkpoint, with_text_encoder=with_text_encoder)
    with torch.device("meta"), no_init_weights():
        model: Any = model_class(copy.deepcopy(checkpoint.config), **placeholders)
    model.name_or_path = checkpoint.name
    zero = torch.zeros(())
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(zero.expand(weight.shape), requires_grad=False))
    return model
