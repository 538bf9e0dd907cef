"""What a model needs, what is free, and what is said where that is less."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.decoding.memory import GIB, Need, cache_bytes, free_bytes, require
from stepladder.errors import EngineError
from tiny_models import tiny_model

MEMINFO = "MemTotal: 99 kB\nMemAvailable:    2048 kB\n"


def machine(root: Path, **files: str) -> Path:
    """A folder that looks like /proc and /sys; double underscores stand for slashes."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    return root


def group(base: Path, place: str, **values: int | str) -> None:
    """A control group's files; dots as single underscores."""
    folder = base / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        text = f"anon 5\n{value}\n" if name == "memory_stat" else f"{value}\n"
        (folder / name.replace("memory_", "memory.")).write_text(text, "utf-8")


def test_what_is_missing_is_said_in_gib():
    need = Need(weights=3 * GIB, cache=GIB // 2)
    with pytest.raises(EngineError) as caught:
        require(need, name="large", device="cuda", probe=lambda device: 2 * GIB if device == "cuda" else None)
    assert str(caught.value) == (
        "model 'large' needs 3.50 GiB (3.00 of weights, 0.50 of cache) on cuda, where 2.00 GiB are free: 1.50 GiB are "
        "missing; fewer slots, a shorter context or a smaller dtype take less"
    )


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.none() | st.integers(0, 10**12))
def test_a_model_is_refused_exactly_where_it_does_not_fit(weights, cache, free):
    need = Need(weights, cache)
    if free is None or weights + cache <= free:
        require(need, name="m", device="cpu", probe=lambda _: free)
    else:
        with pytest.raises(EngineError, match="are missing"):
            require(need, name="m", device="cpu", probe=lambda _: free)


def test_the_cache_is_as_large_as_was_said():
    """But for the position that padding is written to."""
    model = tiny_model(context=100, slots=3)
    said = cache_bytes(layers=2, heads=2, width=8, slots=3, context=101, itemsize=8)
    assert model.cache.bytes() == said


def test_without_limits_it_is_what_the_machine_has(tmp_path):
    assert free_bytes("cpu", machine(tmp_path, proc__meminfo=MEMINFO)) == 2048 * 1024


def test_where_nobody_can_tell_nothing_is_said(tmp_path):
    assert free_bytes("cpu", tmp_path) is None
    assert free_bytes("cpu", machine(tmp_path, proc__meminfo="MemTotal: 9 kB\n")) is None


def test_the_tightest_limit_of_all_groups_above_counts(tmp_path):
    """File cache is given back by the kernel; a group without a limit says 'max'."""
    machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/pod/box\n")
    group(tmp_path, "pod/box", memory_max="max", memory_current=10)
    assert free_bytes("cpu", tmp_path) == 2048 * 1024
    group(tmp_path, "pod", memory_max=1_000_000, memory_current=400_000, memory_stat="inactive_file 100000")
    assert free_bytes("cpu", tmp_path) == 700_000
    group(tmp_path, "", memory_max=500_000, memory_current=600_000)
    assert free_bytes("cpu", tmp_path) == 0


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="7:cpu,memory:/docker/x\n3:cpuset:/\n")
    group(
        tmp_path,
        "memory",
        memory_limit_in_bytes=300_000,
        memory_usage_in_bytes=200_000,
        memory_stat="total_inactive_file 50000",
    )
    assert free_bytes("cpu", tmp_path) == 150_000


def test_this_machine_has_some():
    free = free_bytes("cpu")
    assert free is None or free > 0


def test_a_gpu_is_asked_through_its_driver(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (asked.append(device), (7, 9))[1])
    assert free_bytes("cuda:1") == 7
    assert [SimpleNamespace(kind=device.type, index=device.index) for device in asked] == [
        SimpleNamespace(kind="cuda", index=1)
    ]
