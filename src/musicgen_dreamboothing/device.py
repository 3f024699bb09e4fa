"""Where to compute and in which precision."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
from pathlib import Path

import psutil
import torch

from musicgen_dreamboothing.console import UserError

M_MMAP_THRESHOLD, MMAP_BYTES = -3, 1 << 20  # the number is glibc's, from malloc.h
# Of torch's allocators on CUDA, HIP, MPS and CPU, of cuBLAS, cuDNN and their like, and of Intel's Level Zero.
NO_MEMORY = (
    *("out of memory", "alloc_failed", "can't allocate memory", "cannot allocate memory", "not enough memory"),
    *("out_of_device_memory", "out_of_host_memory"),
)
DEVICES = ("cuda", "mps", "cpu")  # cuda is NVIDIA's, and AMD's under ROCm
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def parse_device(device: torch.device | str = "auto") -> torch.device:
    """A device by its name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; a `UserError` if it does not exist here."""
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return best_device()
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    here += ["mps"] if torch.backends.mps.is_available() else []
    name = {"cuda": "cuda:0", "cpu:0": "cpu", "mps:0": "mps"}.get(device, device)
    if name not in here:
        raise UserError(f"--device {device!r} is not here; it takes auto, {', '.join(here)}")
    return torch.device(name)


def check_device(device: torch.device) -> None:
    """Raises a `UserError` for accelerators that torch and transformers support and this package does not: xpu, ..."""
    if device.type not in DEVICES:
        raise UserError(f"{device.type} is not supported; use --use_cpu true, or an NVIDIA, AMD or Apple GPU")


def best_dtype(device: torch.device) -> torch.dtype:
    """bf16 if the hardware has it, else fp16 on a GPU and fp32 on a CPU, where emulated bf16 is slower."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_has_bf16_units() else torch.float32


def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies in bf16: AVX512-BF16, which CPUs with AMX have too."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`, or one of float32, bfloat16, float16."""
    if name == "auto":
        return best_dtype(device)
    if name not in DTYPES:
        raise UserError(f"--dtype {name!r} is unknown; it takes auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def return_freed_memory() -> None:
    """Makes glibc return large blocks to the system as soon as they are freed.

    By default it raises its threshold to 32 MB, and freed activations stay in a fragmented heap: a training step of
    musicgen-small in fp32 with recomputation peaks at 5.8 GB instead of 2.6. With 4 MB a step in bf16, whose
    activations have 3 MB, peaks at 2.6 GB instead of 1.6. New pages in each step take a fifth of its time with huge
    pages (`cli.ask_for_huge_pages`). glibc's environment variable wins; other systems have no such setting.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        import ctypes

        with contextlib.suppress(AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def release_memory() -> None:
    """Gives the memory of dropped modules back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(int(psutil.virtual_memory().available), _left_to_container())


def _left_to_container(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes below the limit of a container (cgroup v2) without its file cache; huge without a limit."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # another system, or "max"
        return sys.maxsize
    return max(0, limit - used + int(files.get("inactive_file", 0)))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its contexts, means that a device has no memory left.

    torch's allocator, cuBLAS and CUDA graphs (which raise another error on exit) have their own messages in a
    `RuntimeError`; Python and numpy raise `MemoryError`.
    """
    if error is None:
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(sign in text for sign in NO_MEMORY) or is_out_of_memory(error.__context__)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory() -> None:
    """Resets `peak_memory` on a GPU; that of a process on a CPU can't be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_reserved_memory(device: torch.device) -> float:
    """Peak in GB that a GPU's allocator reserved, which has to fit on the card; 0 without a GPU."""
    return torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else 0.0


def peak_memory(device: torch.device) -> tuple[float, str]:
    """Peak memory in GB, and of what: the GPU's allocator, or this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9, "GPU memory"
    if sys.platform == "win32":
        return 0.0, "not measured on Windows"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, "memory of the process"
