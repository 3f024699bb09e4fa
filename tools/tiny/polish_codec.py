"""The codec's second training: its decoder against a discriminator, so that noise sounds like noise.

    python tools/tiny/polish_codec.py WORK/codec --data DATA --output_dir WORK/polished

Distances between spectra are least where a decoder plays the mean of what could be meant: distorted guitars and
cymbals come out smooth. A discriminator of STFTs at several scales (Défossez et al. 2022, section 3.4, much smaller)
hears that. Encoder and codebooks stay as they are, so tokens that exist remain valid. The same command goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from figures import mel_distance, si_sdr
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from tqdm import tqdm
from train_codec import DEVICE, KEEP_SECONDS, RATE, WEIGHTS, Objective, Resumable, batches, load_audio
from transformers import EncodecModel

WINDOWS = (512, 1024, 2048)
ADVERSARY, FEATURES = 0.3, 1.5  # weights beside those of the first training


class Discriminator(nn.Module):
    """Real and imaginary part of one STFT through dilated convolutions; `[B, S]` -> logits and feature maps."""

    def __init__(self, window: int, filters: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        widths = [2, filters, filters, filters, filters]
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv2d(
                    widths[n],
                    widths[n + 1],
                    (3, 9),
                    stride=(1, 2),
                    dilation=(max(1, 2 ** (n - 1)), 1),
                    padding=(max(1, 2 ** (n - 1)), 4),
                )
            )
            for n in range(4)
        )
        self.last = weight_norm(nn.Conv2d(filters, 1, (3, 3), padding=(1, 1)))

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        size = len(self.window)
        spectrum = torch.stft(wave, size, size // 4, window=self.window, normalized=True, return_complex=True)
        hidden = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # [B, 2, T, F]
        maps = []
        for layer in self.layers:
            hidden = functional.leaky_relu(layer(hidden), 0.2)
            maps.append(hidden)
        return self.last(hidden), maps


class Polishing(Resumable):
    """Decoder and discriminators with their optimizers; encoder and quantiser are frozen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.codec = EncodecModel.from_pretrained(options.codec).to(DEVICE).requires_grad_(False)
        self.codec.decoder.requires_grad_(True).train()
        self.judges = nn.ModuleList(Discriminator(window, options.filters) for window in WINDOWS).to(DEVICE)
        self.objective, self.step = Objective().to(DEVICE), 0
        rate, betas = options.learning_rate, (0.5, 0.9)
        self.optimizer = torch.optim.AdamW(self.codec.decoder.parameters(), rate, betas, fused=True)
        self.judges_optimizer = torch.optim.AdamW(self.judges.parameters(), 2 * rate, betas, fused=True)

    def parts(self) -> dict[str, Any]:
        """What is kept on disk."""
        return {
            "codec": self.codec,
            "judges": self.judges,
            "optimizer": self.optimizer,
            "judges_optimizer": self.judges_optimizer,
        }

    def learn(self, wave: torch.Tensor) -> dict[str, float]:
        """One step on pieces `[B, 1, S]`: first the discriminators, then the decoder."""
        with torch.no_grad():
            codes = self.codec.encode(wave).audio_codes[0]
            latent = self.codec.quantizer.decode(codes.transpose(0, 1))
        true, made = wave[:, 0], self.codec.decoder(latent)[:, 0]
        told = torch.stack([self._judged(judge, true, made.detach()) for judge in self.judges]).mean()
        self._update(told, self.judges_optimizer, self.judges)
        parts = self.objective(made, true)
        total = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        fooled, features = zip(*(self._felt(judge, true, made) for judge in self.judges), strict=True)
        parts |= {"adversary": torch.stack(fooled).mean(), "features": torch.stack(features).mean()}
        total = total + ADVERSARY * parts["adversary"] + FEATURES * parts["features"]
        self._update(total, self.optimizer, self.codec.decoder)
        self.step += 1
        return {name: float(part.detach()) for name, part in parts.items()} | {"judges": float(told.detach())}

    @staticmethod
    def _judged(judge: nn.Module, true: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """The hinge loss of one discriminator."""
        return functional.relu(1 - judge(true)[0]).mean() + functional.relu(1 + judge(made)[0]).mean()

    @staticmethod
    def _felt(judge: nn.Module, true: torch.Tensor, made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What one discriminator tells the decoder: its hinge loss and the distance of its feature maps."""
        with torch.no_grad():
            _, wanted = judge(true)
        judge.requires_grad_(False)
        logits, maps = judge(made)
        judge.requires_grad_(True)
        distances = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(maps, wanted, strict=True)]
        return functional.relu(1 - logits).mean(), torch.stack(distances).mean()

    @staticmethod
    def _update(loss: torch.Tensor, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()

    @torch.no_grad()
    def judge(self, waves: torch.Tensor) -> dict[str, float]:
        """SI-SDR and mel distance over whole clips `[N, S]`, both in dB."""
        made = torch.cat(
            [
                self.codec.decode(self.codec.encode(part[:, None]).audio_codes, [None]).audio_values[:, 0]
                for part in waves.to(DEVICE).split(16)
            ]
        ).cpu()
        return {"si_sdr": float(si_sdr(made, waves).mean()), "mel": float(mel_distance(made, waves, RATE).mean())}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", help="what train_codec.py wrote")
    parser.add_argument("--data", required=True, type=Path, help="what render.py made")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--clips", type=int, default=8, help="pieces in a batch")
    parser.add_argument("--frames", type=int, default=32, help="length of a piece, 40 ms each")
    parser.add_argument("--filters", type=int, default=8, help="of each discriminator")
    parser.add_argument("--etudes", type=float, default=0.5, help="share of the etudes in a batch")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    audio = [load_audio(options.data / "train"), load_audio(options.data.resolve().parent / "etudes")]
    valid = torch.from_numpy(load_audio(options.data / "valid")).float() / 32768
    options.output_dir.mkdir(parents=True, exist_ok=True)
    polishing, path = Polishing(options), options.output_dir / "training.pt"
    if path.exists():
        polishing.go_on(path)
    shares = [1 - options.etudes, options.etudes]
    pieces = batches(audio, shares, options.clips, options.frames, options.seed + polishing.step)
    kept_at = time.monotonic()
    with tqdm(total=options.steps, initial=polishing.step, unit="step", desc="decoder") as bar:
        while polishing.step < options.steps:
            parts = polishing.learn(next(pieces).to(DEVICE))
            bar.update()
            if polishing.step % 25 == 0:
                bar.set_postfix({name: f"{part:.3f}" for name, part in parts.items()})
            if polishing.step % 200 == 0:
                bar.write(f"step {polishing.step}: {polishing.judge(valid[::4])}")
            if time.monotonic() - kept_at > KEEP_SECONDS:
                polishing.keep(path)
                kept_at = time.monotonic()
    polishing.keep(path)
    polishing.codec.save_pretrained(options.output_dir)
    print(polishing.judge(valid))


if __name__ == "__main__":
    main()
