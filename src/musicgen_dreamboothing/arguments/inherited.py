"""Rules for the options of transformers: valid values, and which have no effect."""

from __future__ import annotations

from musicgen_dreamboothing.arguments.fields import LARGEST_BATCH, LARGEST_SEED, MOST_WORKERS, Rule
from musicgen_dreamboothing.arguments.trainer_options import IDLE

MOST_STEPS = 10**9
STEPS = Rule(at_least=0, at_most=MOST_STEPS)
COUNT = Rule(at_least=1, at_most=MOST_STEPS)
SEED = Rule(at_least=0, at_most=LARGEST_SEED)
PUSHING = Rule(needs=("--push_to_hub",))
LEVEL = Rule(choices=("detail", "debug", "info", "warning", "error", "critical", "passive"))
IGNORED = Rule(ignored=True)  # its Trainer reads them for other models, or leaves them to scripts

INHERITED: dict[str, Rule] = dict.fromkeys(IDLE, IGNORED) | {
    "max_steps": Rule(at_least=-1, at_most=MOST_STEPS),
    "warmup_steps": STEPS,
    "adam_beta1": Rule(at_least=0, below=1),
    "adam_epsilon": Rule(above=0, at_most=1),
    "max_grad_norm": Rule(at_least=0),
    "label_smoothing_factor": Rule(at_least=0, at_most=1),
    "neftune_noise_alpha": Rule(at_least=0),
    "torch_empty_cache_steps": COUNT,
    "eval_steps": Rule(at_least=0, at_most=MOST_STEPS, needs=("--eval_strategy steps",)),
    "save_steps": Rule(at_least=0, at_most=MOST_STEPS, needs=("--save_strategy steps",)),
    "eval_delay": STEPS,
    "eval_accumulation_steps": COUNT,
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": Rule(at_least=0, at_most=MOST_WORKERS),
    "dataloader_multiprocessing_context": Rule(choices=("fork", "spawn", "forkserver")),
    "dataloader_prefetch_factor": Rule(at_least=1, at_most=LARGEST_BATCH),
    "dataloader_persistent_workers": Rule(needs=("--dataloader_num_workers",)),
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "log_level": LEVEL,
    "log_level_replica": LEVEL,
    "torch_compile_mode": Rule(choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")),
    "local_rank": Rule(at_least=-1, at_most=MOST_STEPS),
    "hub_model_id": PUSHING,
    "hub_private_repo": PUSHING,
    "hub_token": PUSHING,
    "generation_max_length": Rule(at_least=1, at_most=MOST_STEPS, ignored=True),
    "generation_num_beams": Rule(at_least=1, at_most=MOST_STEPS, ignored=True),
    "trackio_space_id": Rule(needs=("--report_to trackio",)),
}
