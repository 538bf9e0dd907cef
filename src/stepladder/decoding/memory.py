"""Will it fit? Asked before anything is loaded: running out halfway takes minutes, and on a CPU the whole machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from stepladder.errors import EngineError

GIB = 1024**3

Probe = Callable[[str], int | None]
"""Device → bytes that can be taken there; None where nobody can tell."""


class Need(NamedTuple):
    """Bytes that a model takes."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        """Weights and cache; what a pass takes for itself is small beside them and not counted."""
        return self.weights + self.cache

    def __str__(self) -> str:
        return f"{_gib(self.total)} GiB ({_gib(self.weights)} of weights, {_gib(self.cache)} of cache)"


def cache_bytes(*, layers: int, heads: int, width: int, slots: int, context: int, itemsize: int) -> int:
    """Keys and values of every position of every slot."""
    return 2 * layers * heads * width * slots * context * itemsize


def require(need: Need, *, name: str, device: str, probe: Probe) -> None:
    """Raise EngineError where ``need`` is more than ``device`` has free; say nothing where nobody can tell."""
    free = probe(device)
    if free is not None and need.total > free:
        raise EngineError(
            f"model '{name}' needs {need} on {device}, where {_gib(free)} GiB are free: "
            f"{_gib(need.total - free)} GiB are missing; fewer slots, a shorter context or a smaller dtype take less"
        )


def free_bytes(device: str, root: Path = Path("/")) -> int | None:
    """What can be taken on a device: of a GPU what its driver says, else what the machine and its limits leave.

    ``root`` is where /proc and /sys are looked for.
    """
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return int(free)
    return min((left for left in (_available(root), *_limits(root)) if left is not None), default=None)


def _available(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _limits(root: Path) -> Iterator[int]:
    """What control groups leave: those of this process and all above it (version 2), or the one of version 1."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        place = base / path.strip("/") if not controllers else base / "memory"
        if not controllers:
            for folder in (place, *(above for above in place.parents if above.is_relative_to(base))):
                yield from _left(folder, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _left(place, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    """The limit less what is in use, but for the file cache, which the kernel gives back."""
    most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if not most.isdigit() or not used.isdigit():  # "max", or no such file
        return
    fields = (line.split() for line in _read(folder / "memory.stat").splitlines())
    given_back = next((int(field[1]) for field in fields if field[0] == cached), 0)
    yield max(0, int(most) - int(used) + given_back)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:  # not Linux, or no such limit
        return ""


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
