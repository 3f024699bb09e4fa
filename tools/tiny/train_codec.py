"""Trains the tiny checkpoint's EnCodec from a random initialisation, and writes it as transformers does.

    python tools/tiny/train_codec.py DATA --output_dir WORK/codec

DATA is what `render.py` made: `train/` and `valid/`, and `etudes/` beside it, with FLAC files at 16 kHz. The same
command goes on where it was stopped. `WORK/codec` is an `EncodecModel` for `from_pretrained`.

Objective: relative waveform error, multi-resolution STFT (spectral convergence and log magnitude, Yamamoto et
al. 2020) and log-mel distance, no discriminator. Quantiser: residual, codebooks by exponential moving
averages (van den Oord et al. 2017, appendix A.1), begun by k-means after a warm-up without quantisation.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from figures import MelBands, mel_distance, si_sdr
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import EncodecConfig, EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecConvTranspose1d

RATE, HOP = 16_000, 640  # 25 frames a second
CODEBOOKS, CODES = 4, 1024
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM_UP = 400  # steps without quantisation
DECAY = 0.97  # of the moving averages of the codebooks
KEEP_SECONDS = 60  # between two checkpoints
WINDOWS = (256, 1024, 2048)


def configuration(filters: int, hidden: int, ratios: list[int], residual: int, lstm: int) -> EncodecConfig:
    """Non-causal, as MusicGen's 32 kHz EnCodec; four codebooks of 1024 codes at 25 Hz are 1 kbit/s."""
    return EncodecConfig(
        target_bandwidths=[1.0],
        sampling_rate=RATE,
        audio_channels=1,
        normalize=False,
        num_filters=filters,
        num_residual_layers=residual,
        upsampling_ratios=ratios,
        norm_type="weight_norm",
        use_causal_conv=False,
        hidden_size=hidden,
        codebook_dim=hidden,
        codebook_size=CODES,
        num_lstm_layers=lstm,
    )


class Quantizer(nn.Module):
    """Residual vector quantisation with EMA codebooks; latents are `[B, D, T]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.zeros(CODEBOOKS, CODES, width))
        self.register_buffer("total", torch.zeros(CODEBOOKS, CODES, width))
        self.register_buffer("count", torch.ones(CODEBOOKS, CODES))
        self.register_buffer("ready", torch.zeros(()))

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The quantised latent with a straight-through gradient, and the commitment loss."""
        rows = latent.transpose(1, 2).reshape(-1, latent.shape[1])
        residual, loss = rows, rows.new_zeros(())
        quantised = torch.zeros_like(rows)
        for level in range(CODEBOOKS):
            codes = nearest(residual.detach(), self.embed[level])
            chosen = self.embed[level][codes]
            if self.training:
                self._follow(level, residual.detach(), codes)
            loss = loss + functional.mse_loss(residual, chosen)
            residual = residual - chosen
            quantised = quantised + chosen
        quantised = rows + (quantised - rows).detach()
        return quantised.reshape(len(latent), -1, latent.shape[1]).transpose(1, 2), loss

    @torch.no_grad()
    def _follow(self, level: int, rows: torch.Tensor, codes: torch.Tensor) -> None:
        count = torch.bincount(codes, minlength=CODES).float()
        total = torch.zeros_like(self.embed[level]).index_add_(0, codes, rows)
        self.count[level].lerp_(count, 1 - DECAY)
        self.total[level].lerp_(total, 1 - DECAY)
        dead = self.count[level] < 0.02
        if dead.any():  # codes that nobody uses begin anew where there is something
            fresh = rows[torch.randint(len(rows), (int(dead.sum()),), device=rows.device)]
            self.total[level][dead], self.count[level][dead] = fresh * 0.2, 0.2
        self.embed[level] = self.total[level] / self.count[level, :, None].clamp(min=1e-4)

    @torch.no_grad()
    def begin(self, rows: torch.Tensor) -> None:
        """k-means, level after level, over latents `[N, D]`."""
        residual = rows
        for level in range(CODEBOOKS):
            centres = residual[torch.randperm(len(residual), device=rows.device)[:CODES]].clone()
            for _ in range(12):
                codes = nearest(residual, centres)
                count = torch.bincount(codes, minlength=CODES).float()
                total = torch.zeros_like(centres).index_add_(0, codes, residual)
                centres = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), centres)
            share = len(residual) / CODES / 40
            self.embed[level], self.count[level], self.total[level] = centres, share, centres * share
            residual = residual - centres[nearest(residual, centres)]
        self.ready.fill_(1)


def nearest(rows: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centre for each row."""
    return (rows @ centres.T - 0.5 * centres.square().sum(1)).argmax(1)


class Objective(nn.Module):
    """What is wrong with `made` as a copy of `true`, both `[B, S]`."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelBands(RATE)
        for window in WINDOWS:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def forward(self, made: torch.Tensor, true: torch.Tensor) -> dict[str, torch.Tensor]:
        energy = true.square().mean(1).clamp(min=1e-4)
        parts = {"wave": ((made - true).square().mean(1) / energy).mean()}
        converge, log = [], []
        for window in WINDOWS:
            ours, theirs = (self._magnitude(wave, window) for wave in (made, true))
            converge.append(
                ((ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2)).clamp(min=1e-3)).sqrt().mean()
            )
            floor = 0.01
            log.append(((ours + floor).log() - (theirs + floor).log()).abs().mean())
        parts["convergence"], parts["log"] = torch.stack(converge).mean(), torch.stack(log).mean()
        parts["mel"] = (self.mel(made) - self.mel(true)).abs().mean() / 10
        return parts

    def _magnitude(self, wave: torch.Tensor, window: int) -> torch.Tensor:
        spectrum = torch.stft(wave, window, window // 4, window=getattr(self, f"window_{window}"), return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-8).sqrt()


WEIGHTS = {"wave": 1.5, "convergence": 0.5, "log": 0.3, "mel": 0.7, "commit": 0.25}


@torch.no_grad()
def unit_variance(model: EncodecModel, wave: torch.Tensor) -> None:
    """Scales each convolution to unit output and zeroes its bias (LSUV, Mishkin & Matas 2016).

    transformers' own initialisation begins on a plateau.
    """

    def scale(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        spread = output.std().clamp(min=1e-4)
        layer.weight = layer.weight / spread
        return output / spread

    layers = [m.conv for m in model.modules() if isinstance(m, EncodecConv1d | EncodecConvTranspose1d)]
    for layer in layers:
        nn.init.zeros_(layer.bias)
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    model.decoder(model.encoder(wave))
    for hook in hooks:
        hook.remove()
    last = model.decoder.layers[-1].conv
    last.weight = last.weight * 0.1


def load_audio(folder: Path) -> np.ndarray:
    """All FLAC files of a folder, int16 `[clips, samples]`, in the order of their names."""
    return np.stack([soundfile.read(path, dtype="int16")[0] for path in sorted(folder.glob("*.flac"))])


def batches(audio: list[np.ndarray], shares: list[float], clips: int, frames: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless random pieces `[clips, 1, frames * HOP]`, begun on a frame; each folder has its share."""
    rng = np.random.default_rng(seed)
    while True:
        rows = []
        for folder in rng.choice(len(audio), clips, p=shares):
            wave = audio[folder][rng.integers(len(audio[folder]))]
            start = HOP * rng.integers((len(wave) - frames * HOP) // HOP + 1)
            rows.append(wave[start : start + frames * HOP])
        yield torch.from_numpy(np.stack(rows).astype(np.float32) / 32768)[:, None]


@torch.no_grad()
def judge(model: EncodecModel, quantizer: Quantizer, valid: np.ndarray) -> dict[str, float]:
    """SI-SDR and mel distance, both in dB, over whole held-out clips."""
    model.eval(), quantizer.eval()
    sdr, mel = [], []
    for rows in np.array_split(valid, max(1, len(valid) // 16)):
        wave = torch.from_numpy(rows.astype(np.float32) / 32768)
        latent = model.encoder(wave[:, None].to(DEVICE))
        made = model.decoder(quantizer(latent)[0])[:, 0, : wave.shape[1]].cpu()
        sdr.append(si_sdr(made, wave))
        mel.append(mel_distance(made, wave, RATE))
    model.train(), quantizer.train()
    return {"si_sdr": float(torch.cat(sdr).mean()), "mel": float(torch.cat(mel).mean())}


class Resumable:
    """A training that is kept on disk and taken up again; `parts` and `step` are its own."""

    step: int

    def parts(self) -> dict[str, Any]:
        """Modules and optimizers by name."""
        raise NotImplementedError

    def keep(self, path: Path) -> None:
        """In one move."""
        scratch = path.with_suffix(".new")
        torch.save({"step": self.step} | {name: part.state_dict() for name, part in self.parts().items()}, scratch)
        os.replace(scratch, path)

    def go_on(self, path: Path) -> None:
        """From where an earlier run was stopped."""
        kept = torch.load(path, weights_only=True, map_location=DEVICE)
        self.step = kept["step"]
        for name, part in self.parts().items():
            part.load_state_dict(kept[name])


class Training(Resumable):
    """The codec, its quantiser and its optimizer; one that is stopped in its warm-up begins anew."""

    def __init__(self, options: argparse.Namespace) -> None:
        config = configuration(options.filters, options.hidden, options.ratios, options.residual, options.lstm)
        self.model = EncodecModel(config).train().to(DEVICE)
        self.quantizer, self.objective = Quantizer(options.hidden).to(DEVICE), Objective().to(DEVICE)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.learning_rate, betas=(0.8, 0.99), weight_decay=1e-4, fused=True
        )
        self.peak, self.steps, self.step = options.learning_rate, options.steps, 0
        self._latents: list[torch.Tensor] = []  # of the last steps of the warm-up `[N, D]`

    def parts(self) -> dict[str, Any]:
        """What is kept on disk."""
        return {"model": self.model, "quantizer": self.quantizer, "optimizer": self.optimizer}

    def learn(self, wave: torch.Tensor) -> dict[str, float]:
        """One step on pieces `[B, 1, S]`; returns the parts of the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        latent = self.model.encoder(wave)
        quantised, commit = self.quantizer(latent) if self.quantizer.ready else self._unquantised(latent)
        parts = self.objective(self.model.decoder(quantised)[:, 0], wave[:, 0]) | {"commit": commit}
        torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.step == WARM_UP:
            self.quantizer.begin(torch.cat(self._latents))
        return {name: float(part.detach()) for name, part in parts.items()}

    def _rate(self) -> float:
        """A short rise, then half a cosine down to a fiftieth."""
        fall = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        return self.peak * min(1.0, (self.step + 1) / 100) * (0.02 + 0.98 * fall)

    def _unquantised(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.step >= WARM_UP - 60:
            self._latents.append(latent.detach().transpose(1, 2).reshape(-1, latent.shape[1]))
        return latent, 1e-3 * latent.square().mean()


def main() -> None:
    """See the module."""
    options = _options()
    torch.manual_seed(options.seed)
    folder, data = Path(options.output_dir), Path(options.data)
    folder.mkdir(parents=True, exist_ok=True)
    audio = [load_audio(data / "train"), load_audio(data.resolve().parent / "etudes")]
    valid = load_audio(data / "valid")
    training, path = Training(options), folder / "training.pt"
    if path.exists():
        training.go_on(path)
    shares = [1 - options.etudes, options.etudes]
    pieces = batches(audio, shares, options.clips, options.frames, options.seed + training.step)
    if not training.step:
        unit_variance(training.model, next(pieces).to(DEVICE))
    kept_at = time.monotonic()
    with tqdm(total=options.steps, initial=training.step, unit="step", desc="codec") as bar:
        while training.step < options.steps:
            parts = training.learn(next(pieces).to(DEVICE))
            bar.update()
            if training.step % 25 == 0:
                bar.set_postfix({name: f"{part:.3f}" for name, part in parts.items()})
            if training.step % 500 == 0:
                bar.write(f"step {training.step}: {judge(training.model, training.quantizer, valid[::4])}")
            if training.step > WARM_UP and time.monotonic() - kept_at > KEEP_SECONDS:
                training.keep(path)
                kept_at = time.monotonic()
    training.keep(path)
    with torch.no_grad():
        export(training.model, training.quantizer, folder)
    print(judge(training.model, training.quantizer, valid))


def export(model: EncodecModel, quantizer: Quantizer, folder: Path) -> None:
    """The codec with its codebooks, as transformers saves it."""
    for layer, embed in zip(model.quantizer.layers, quantizer.embed, strict=True):
        layer.codebook.embed.copy_(embed)
        layer.codebook.embed_avg.copy_(embed)
        layer.codebook.cluster_size.fill_(1)
    model.save_pretrained(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="what render.py made")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--steps", type=int, default=2000, help="in all, over every part of the training")
    parser.add_argument("--clips", type=int, default=12, help="pieces in a batch")
    parser.add_argument("--frames", type=int, default=32, help="length of a piece, 40 ms each")
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=64, help="width of the quantised latent")
    parser.add_argument("--ratios", type=int, nargs="*", default=[2, 4, 8, 10])
    parser.add_argument("--residual", type=int, default=0, help="residual blocks on each level")
    parser.add_argument("--lstm", type=int, default=1, help="LSTM layers")
    parser.add_argument("--etudes", type=float, default=0.35, help="share of the etudes in a batch")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
