"""Loading a model: samples of a training equal `generate`, and memory stays that of the model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import Ran, read_checkpoint, train_words

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.decoding import GraphedCodeStream, GraphError
from musicgen_dreamboothing.generation.engine import Decoder
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.model import loading
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, read_adapter, save_adapter
from musicgen_dreamboothing.model.loading import load_for_generation, load_language_model
from musicgen_dreamboothing.model.merging import merged_in_place

CPU = torch.device("cpu")
PROMPT, SECONDS = "punk", 0.2
SLOW = pytest.mark.slow
DEFAULT = LoraSettings()
KINDS_OF_ADAPTER = {
    "LoRA": DEFAULT,
    "rsLoRA, attention": LoraSettings(use_rslora=True, targets="attention"),
    "DoRA": LoraSettings(use_dora=True),
    "OLoRA": LoraSettings(init="olora", r=4),
    "PiSSA, rsLoRA": LoraSettings(init="pissa", r=4, use_rslora=True),
}

Folders = Callable[[str], Path]
Cli = Callable[..., Ran]


def random_adapter(
    base: Path, settings: LoraSettings = DEFAULT, std: float = 0.05, dtype: torch.dtype = torch.float32
) -> Any:
    """A model with an adapter whose matrices are random, as after a training."""
    torch.manual_seed(0)
    model = add_adapter(load_language_model(read_checkpoint(base), dtype, CPU), settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                weight.normal_(std=std)
    return model


def adapter_on(base: Path, folder: Path, settings: LoraSettings = DEFAULT, std: float = 0.05) -> Path:
    save_adapter(random_adapter(base, settings, std), folder)
    return folder


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.dim() == 2}


# What is added


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.bfloat16) for kind in KINDS_OF_ADAPTER), ("LoRA", torch.float32), ("DoRA", torch.float16)],
)
def test_an_adapter_is_added_in_fp32_and_rounded_once(
    kind: str, dtype: torch.dtype, checkpoints: Folders, tmp_path: Path
) -> None:
    """As PEFT merges it into the base in fp32: added to 16-bit weights, most of a small update would be lost."""
    base = checkpoints("melody" if kind == "DoRA" else "text")
    checkpoint, folder = read_checkpoint(base), adapter_on(base, tmp_path, KINDS_OF_ADAPTER[kind], std=1e-4)
    from peft import PeftModel

    plain = load_language_model(checkpoint, torch.float32, CPU)
    before = {name: weight.clone() for name, weight in weights_of(plain).items()}
    expected = weights_of(PeftModel.from_pretrained(plain, str(folder)).merge_and_unload())
    model, active = load_for_generation(checkpoint, dtype, CPU, adapter=read_adapter(str(folder)))
    found = weights_of(model)
    assert active is not None
    assert active[0] == active[1] > 0
    changed = [name for name, weight in expected.items() if not torch.equal(weight, before[name])]
    assert len(changed) == active[1]
    for name, weight in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], weight.to(dtype)), name


@pytest.mark.parametrize("kind", KINDS_OF_ADAPTER)
def test_an_adapter_merged_in_training_equals_the_loaded_one(kind: str, tiny: Path, tmp_path: Path) -> None:
    checkpoint, model = read_checkpoint(tiny), random_adapter(tiny, KINDS_OF_ADAPTER[kind], dtype=torch.bfloat16)
    save_adapter(model, tmp_path)
    loaded, _ = load_for_generation(checkpoint, torch.bfloat16, CPU, adapter=read_adapter(str(tmp_path)))
    expected = loaded.state_dict()
    with merged_in_place(model, checkpoint) as merged:
        weights = {name.replace(".base_layer.", "."): weight for name, weight in merged.state_dict().items()}
        assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("melody", ("--dtype", "bfloat16", "--use_dora", "true")),
        pytest.param("text-stereo", ("--dtype", "bfloat16", "--lora_init", "pissa", "--lora_r", "4"), marks=SLOW),
        pytest.param("text", ("--dtype", "float32", "--freeze_text_encoder", "false"), marks=SLOW),
        pytest.param("text", ("--dtype", "bfloat16", "--quantization", "nf4"), marks=SLOW),
        pytest.param("text", ("--dtype", "bfloat16", "--quantization", "int8"), marks=SLOW),
    ],
)
def test_samples_of_a_training_equal_generate_and_a_quantised_run_is_evaluated(
    kind: str, words: tuple[str, ...], checkpoints: Folders, songs: Path, tmp_path: Path, cli: Cli
) -> None:
    """The last sample of a training and the same clip of `generate` are the same file, byte by byte."""
    quantization = words[3] if "--quantization" in words else "none"
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    run = tmp_path / "run"
    training = (*train_words(songs, run, checkpoints(kind)), "--max_steps", 1, "--learning_rate", 3e-3, *words)
    sampling = ("--sample_prompts", PROMPT, "--sample_seconds", SECONDS, "--seed", 3, "--sample_at_start", "false")
    assert cli(*training, *sampling, "--eval_strategy", "no", "--eval_on_start", "false").code == 0
    (sample,) = (run / "samples" / "step_0001").glob("*.wav")
    of_training = ("--dtype", words[1], "--quantization", quantization)
    playing = ("generate", run, PROMPT, "--seconds", SECONDS, "--seed", 3, "--output_dir", tmp_path / "generated")
    if quantization != "int8":  # bitsandbytes' in training, torch's kernel in `generate`
        assert cli(*playing, *of_training).code == 0
        (clip,) = (tmp_path / "generated").glob("*.wav")
        assert np.array_equal(soundfile.read(clip)[0], soundfile.read(sample)[0])
    if quantization != "none":
        ran = cli(
            *("evaluate", run, "--clap_model_name_or_path", "none", "--device", "cpu", "--quantization", quantization),
            *("--prompts", "punk", "--neutral_prompts", "a waltz", "--variations", 2, "--seconds", 0.5),
        )
        assert ran.code == 0, ran.err
        assert (run / "evaluation" / "report.html").is_file()
        assert f'"quantization": "{quantization}"' in (run / "evaluation" / "tuned" / "made.json").read_text()


# A quantised base


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_an_adapter_beside_a_quantised_base(kind: str, quantization: str, checkpoints: Folders, tmp_path: Path) -> None:
    """The engine, which joins products, computes what the modules of PEFT compute; without the adapter it does not."""
    pytest.importorskip("bitsandbytes")
    base = checkpoints(kind)
    folder = adapter_on(base, tmp_path / "adapter")
    generator = Generator(folder, device="cpu", dtype="float32", quantization=quantization)
    assert generator.active_layers is not None
    assert generator.active_layers[0] == generator.active_layers[1]
    states = torch.randn(1, 5, generator.checkpoint.config.text_encoder.hidden_size)
    mask, keep = torch.ones(1, 5, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    codes = torch.randint(0, generator.checkpoint.codebook_size, (1, generator.checkpoint.codebooks, 6))
    model: Any = generator.model
    with torch.inference_mode():
        conditioning = model.condition(states, mask, keep)
        decoder = Decoder(generator._stack, conditioning, 6, static_cache=False)
        ours = torch.stack([decoder.logits(codes[..., step], step)[0] for step in range(6)])
        modules = model.logits(model.hidden_states(codes, conditioning))[0].transpose(0, 1)
        plain: Any = Generator(base, device="cpu", dtype="float32", quantization=quantization).model
        without = plain.logits(plain.hidden_states(codes, plain.condition(states, mask, keep)))[0].transpose(0, 1)
    scale = (modules - without).norm()
    assert scale > 0.1
    assert (ours - modules).norm() < 0.02 * scale


def test_int8_weights_are_those_of_the_base_and_not_of_the_sum(checkpoints: Folders, tmp_path: Path) -> None:
    """Rounding to 8 bits would swallow a small update: it stays beside the weights."""
    base = checkpoints("text")
    folder = adapter_on(base, tmp_path, std=1e-4)
    adapted = Generator(folder, device="cpu", dtype="float32", quantization="int8").model
    plain = Generator(base, device="cpu", dtype="float32", quantization="int8").model
    first, second = (model.decoder.model.decoder.layers[0].fc1 for model in (adapted, plain))
    assert torch.equal(first.get_base_layer().weight, second.weight)
    assert first.lora_A["default"].weight.dtype == torch.float32


def test_a_checkpoint_of_an_unfinished_pissa_run_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Its matrices belong to a base that PiSSA has changed."""
    checkpoint = read_checkpoint(tiny)
    model = add_adapter(load_language_model(checkpoint, torch.float32, CPU), LoraSettings(init="pissa"))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(UserError, match=r"belongs to a base that pissa has changed.*use the finished run"):
        Generator(tmp_path, device="cpu")


# Devices, graphs and numbers


@pytest.mark.parametrize("device", ["cuda:7", "xpu", "gpu"])
@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_a_missing_device_is_named(verb: str, device: str, tiny: Path, tmp_path: Path, cli: Cli) -> None:
    words = ("generate", tiny, "punk", "--output_dir", tmp_path) if verb == "generate" else ("evaluate", tmp_path)
    if verb == "evaluate":
        (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    ran = cli(*words, f"--device={device}")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert f"--device {device!r} is not here; it takes auto, cpu" in ran.err


def test_a_step_that_cannot_be_captured_runs_eagerly(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(stream: GraphedCodeStream) -> None:
        raise GraphError("operation not permitted when stream is capturing")

    expected = Generator(tiny, device="cpu", dtype="float32")
    clips = [clip.codes for clip in expected.generate([PROMPT, "a waltz"], seconds=SECONDS, progress=False)]
    stream = list(expected.stream(PROMPT, seconds=SECONDS))
    monkeypatch.setattr(GraphedCodeStream, "advance", refused)
    for play in ("generate", "stream"):
        generator = Generator(tiny, device="cpu", dtype="float32")
        generator._uses_graphs = True
        if play == "generate":
            found = [
                clip.codes
                for clip in generator.generate([PROMPT, "a waltz"], seconds=SECONDS, batch_size=1, progress=False)
            ]
            assert all(torch.equal(*pair) for pair in zip(found, clips, strict=True))
        else:
            pieces = list(generator.stream(PROMPT, seconds=SECONDS))
            assert all(np.array_equal(*pair) for pair in zip(pieces, stream, strict=True))
        said = capsys.readouterr().out
        assert said.count("can't capture a CUDA graph (operation not permitted") == 1
        assert "decoding without, more slowly" in said


@pytest.mark.parametrize(("play", "step"), [("generate", 0), ("stream", 1), ("generate", 7)])
def test_nan_in_any_step_is_an_error(play: str, step: int, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes drawn from NaN would be noise for the rest of the clip."""
    usual = Decoder.logits

    def overflowing(decoder: Decoder, codes: torch.Tensor, number: Any) -> torch.Tensor:
        logits = usual(decoder, codes, number)
        return logits * torch.nan if number == step else logits

    monkeypatch.setattr(Decoder, "logits", overflowing)
    generator = Generator(tiny, device="cpu", dtype="float32")
    made: Any = generator.stream if play == "stream" else lambda prompt, **rest: generator.generate([prompt], **rest)
    with pytest.raises(UserError, match="computed NaN or infinity; try --dtype float32"):
        list(made(PROMPT, seconds=SECONDS))


# Memory

MEASURED = """
import resource, sys, torch
from musicgen_dreamboothing.generation.generator import Generator
unit = 1 if sys.platform == "darwin" else 1024
small, folder, dtype = sys.argv[1:]
Generator(small, device="cpu", dtype=dtype)  # imports, and what they allocate
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
generator = Generator(folder, device="cpu", dtype=dtype)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
layer = generator.model.decoder.model.decoder.layers[0]
print(peak - before, sum(w.nbytes for w in generator.model.parameters()), sum(w.numel() for w in layer.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_an_adapter_takes_the_memory_of_the_model_and_a_layer(dtype: str, tiny: Path, tmp_path: Path) -> None:
    """Whatever the base: it is never in memory a second time, nor in fp32."""
    checkpoint = read_checkpoint(tiny)
    decoder = checkpoint.config.decoder
    decoder.hidden_size, decoder.ffn_dim, decoder.num_hidden_layers = 512, 2048, 24
    (tmp_path / "base").mkdir()
    for path in tiny.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(0)
    checkpoint.model_class(checkpoint.config).save_pretrained(tmp_path / "base")
    folder = adapter_on(tmp_path / "base", tmp_path / "adapter", LoraSettings(r=8))
    script = [sys.executable, "-c", MEASURED, str(adapter_on(tiny, tmp_path / "small")), str(folder), dtype]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    used, model, layer = map(int, done.stdout.split())
    adapter = (folder / "adapter_model.safetensors").stat().st_size
    assert model > 150e6
    assert used < model + adapter + 4 * layer + 30e6, f"{used / 1e6:.0f} MB for a model of {model / 1e6:.0f} MB"


@pytest.mark.parametrize("settings", [LoraSettings(), LoraSettings(use_dora=True)], ids=["LoRA", "DoRA"])
def test_eight_bit_weights_are_rounded_as_they_are_read(
    settings: LoraSettings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each matrix is rounded as soon as it is read. DoRA, which the 8-bit kernel does not know, is merged before."""
    folder = adapter_on(tiny, tmp_path, settings)
    kinds: list[set[str]] = []
    usual = loading.to_int8

    def noting(model: Any, read: Any) -> None:
        matrices = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]
        kinds.append({"zero" if set(weight.stride()) == {0} else "adapter" for weight in matrices})
        usual(model, read)

    monkeypatch.setattr(loading, "to_int8", noting)
    adapted = Generator(folder, device="cpu", dtype="float32", quantization="int8")
    assert kinds == [{"zero"} if settings.use_dora else {"zero", "adapter"}]
    merged = Generator(folder, device="cpu", dtype="float32")
    first, second = (
        next(one.generate([PROMPT], seconds=SECONDS, sampling=Sampling(temperature=0), progress=False)).codes
        for one in (adapted, merged)
    )
    assert (first == second).float().mean() > 0.5
