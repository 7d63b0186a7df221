"""What a reader must know of the machine to judge the figures; no names and no paths of it."""

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

import torch


ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")
PEERS = ("trl", "liger-kernel", "torchtune", "nvidia-modelopt")


def describe_machine() -> dict[str, object]:
    """Processor, memory, threads, versions and date."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "isa": [flag for flag in ISA_FLAGS if flag in _isa()],
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "peers": {name: _version(name) for name in PEERS},
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _isa() -> set[str]:
    return set((_field("/proc/cpuinfo", "flags") or _field("/proc/cpuinfo", "Features") or "").split())


def _field(path: str, name: str) -> str | None:
    """The first line `name : value` of a file of /proc."""
    file = Path(path)
    for line in file.read_text().splitlines() if file.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
