"""Puts a trained codec, a whole-word tokenizer and an untrained language model together as one checkpoint.

    python tools/tiny/make_base.py WORK/codec --output_dir WORK/start

The result has transformers' standard layout, so that this project's own `prepare` and `train` take it as they
take Meta's; the language model and its small T5 have random weights from `--seed`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from music import VOCABULARY
from transformers import (
    EncodecFeatureExtractor,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-&/()#"


def vocabulary() -> list[tuple[str, float]]:
    """A unigram vocabulary in which a known word is always one piece, and an unknown one falls apart into letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}" if word[0].isalnum() else word, -1.0) for word in VOCABULARY]
    known = {piece for piece, _ in words}
    letters = [(letter, -20.0) for letter in ("▁", *LETTERS) if letter not in known]
    return special + words + letters


def language_model(
    codec: EncodecModel, pieces: int, width: int, layers: int, heads: int
) -> MusicgenForConditionalGeneration:
    """The text family with transformers' own classes; every dropout is 0, as audiocraft trains."""
    text = T5Config(
        vocab_size=pieces,
        d_model=128,
        d_ff=256,
        d_kv=32,
        num_heads=4,
        num_layers=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    codes = codec.config.codebook_size
    decoder = MusicgenDecoderConfig(
        vocab_size=codes,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        num_codebooks=codec.config.num_quantizers,
        pad_token_id=codes,
        bos_token_id=codes,
        dropout=0.0,
        initializer_factor=0.05,
    )
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(text_encoder=text, audio_encoder=codec.config, decoder=decoder)
    )
    model.audio_encoder.load_state_dict(codec.state_dict())
    model.generation_config.update(
        do_sample=True,
        guidance_scale=3.0,
        max_length=30 * codec.config.frame_rate,
        pad_token_id=codes,
        bos_token_id=codes,
        decoder_start_token_id=codes,
    )
    return model


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", help="what train_codec.py wrote")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    codec = EncodecModel.from_pretrained(options.codec)
    pieces = vocabulary()
    model = language_model(codec, len(pieces), options.width, options.layers, options.heads)
    folder = Path(options.output_dir)
    model.save_pretrained(folder)
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[])
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=codec.config.sampling_rate)
    MusicgenProcessor(extractor, tokenizer).save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{folder}: {count:.2f} M weights, {len(pieces)} pieces of text")


if __name__ == "__main__":
    main()
