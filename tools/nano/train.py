"""Train the nano ladder from scratch on any machine with a GPU (a CPU works for a trial).

    PYTHONPATH=src python3 tools/nano/train.py --model all --out build/nano

writes tokenizer.json, nano-{small,medium,large}.gguf, checkpoints and a log of each model under --out. A command that
was cut off goes on from its last checkpoint when it is given again. Seeds are fixed; with a limit in seconds the number
of steps depends on the machine, with --steps it does not (bit-for-bit equality across GPUs is not promised).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import corpus
import model as net
import numpy as np
import torch
import vocabulary
from muon import Muon
from numpy.typing import NDArray
from to_gguf import export
from tokenizers import Tokenizer
from torch import Tensor

from stepladder.evaluate.tasks.nano import generate

SEED = 20261123
TOKENIZER_TASKS = 150_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model is trained: limit [s], peak rate, tokens a step, shares of simple, medium and complex rows."""

    seconds: float
    rate: float
    step_tokens: int
    levels: tuple[float, float, float]
    file_type: str


# The small model could not hold the rare facts anyway, so it sees them seldom; the large one sees them most.
PLANS = {
    "small": Plan(95, 4e-3, 65_536, (0.40, 0.35, 0.25), "F16"),
    "medium": Plan(150, 3e-3, 65_536, (0.28, 0.34, 0.38), "Q8_0"),
    "large": Plan(390, 2e-3, 49_152, (0.20, 0.32, 0.48), "Q8_0"),
}
WARM_UP_STEPS = 300
SAVE_EVERY_S = 60.0


@dataclass(slots=True)
class Resident:
    """A bucket on the training device: ids, starts and sizes as in corpus.Bucket; levels stay on the host."""

    window: int
    ids: Tensor
    starts: Tensor
    sizes: Tensor
    levels: NDArray[np.int8]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids (n, length), places and targets (n, window): which states predict which answer tokens."""
        ids, starts, sizes = self.ids[rows].long(), self.starts[rows].long(), self.sizes[rows].long()
        steps = torch.arange(self.window, device=ids.device)
        wanted = starts[:, None] + steps
        inside = wanted < sizes[:, None]
        wanted = torch.where(inside, wanted, 1)
        targets = torch.where(inside, ids.gather(1, wanted), -100)
        return ids, wanted - 1, targets


def resident(buckets: list[corpus.Bucket], device: str) -> list[Resident]:
    """Copy buckets to the device."""
    return [
        Resident(b.window, *(torch.from_numpy(a).to(device) for a in (b.ids, b.starts, b.sizes)), b.levels)
        for b in buckets
    ]


def batches(data: list[Resident], plan: Plan, skip: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless shuffled batches; each pass thins the rows to the plan's level shares. `skip` batches are passed over."""
    ratios = np.array(plan.levels) / np.array(corpus.ROW_LEVEL_SHARES)
    keep = ratios / ratios.max()
    epoch = 0
    while True:
        rng = np.random.default_rng([SEED, epoch])
        groups = list(_epoch(data, keep, plan.step_tokens, rng))
        for at in rng.permutation(len(groups)):
            if skip > 0:
                skip -= 1
                continue
            bucket, rows = groups[at]
            yield bucket.batch(torch.from_numpy(rows).to(bucket.ids.device, non_blocking=True))
        epoch += 1


def _epoch(
    data: list[Resident], keep: NDArray[np.float64], tokens: int, rng: np.random.Generator
) -> Iterator[tuple[Resident, NDArray[np.int64]]]:
    for bucket in data:
        kept = np.flatnonzero(rng.random(len(bucket.levels)) < keep[bucket.levels])
        rng.shuffle(kept)
        size = max(1, tokens // bucket.ids.shape[1])
        for low in range(0, max(1, len(kept) - size + 1), size):
            yield bucket, kept[low : low + size]


@dataclass(slots=True)
class Progress:
    """Where a training stands; the clock counts training only, not the first steps that compile."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Run:
    """One model's training, resumable from its checkpoint."""

    def __init__(self, name: str, out: Path, device: str, limits: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        torch.set_float32_matmul_precision("high")
        self.name, self.out, self.device = name, out, device
        self.plan = PLANS[name]
        self.limit_s = limits.seconds or self.plan.seconds
        self.limit_steps = limits.steps
        self.net = net.Llama(net.SHAPES[name]).to(device)
        self.loss = torch.compile(self.net, dynamic=True) if device == "cuda" else self.net
        matrices = [w for w in self.net.blocks.parameters() if w.dim() == 2]
        others = [w for n, w in self.net.named_parameters() if w.dim() == 1 or n.startswith("token_embd")]
        adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01, fused=device == "cuda")
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (Muon(matrices), adam)
        self.progress = Progress()
        self.log = (out / f"{name}.log").open("a")

    def fraction(self, seconds: float) -> float:
        """How much of the limit is used up, 0 to 1 and more."""
        return self.progress.steps / self.limit_steps if self.limit_steps else seconds / self.limit_s

    def step(self, batch: tuple[Tensor, Tensor, Tensor], fraction: float) -> Tensor:
        """One optimizer step at a warmed-up, linearly falling rate; returns the loss on the device."""
        warm = min(1.0, (self.progress.steps + 1) / WARM_UP_STEPS)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.plan.rate * warm * max(0.0, 1.0 - fraction)
        with torch.autocast(self.device, torch.bfloat16):
            loss: Tensor = self.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def warm(self, data: list[Resident]) -> None:
        """Compile for the shape of every bucket before the clock starts; nothing is learned."""
        for bucket in data:
            rows = torch.arange(min(len(bucket.levels), self.plan.step_tokens // bucket.ids.shape[1]))
            with torch.autocast(self.device, torch.bfloat16):
                self.loss(*bucket.batch(rows.to(self.device))).backward()
        for parameter in self.net.parameters():
            parameter.grad = None

    def train(self, data: list[Resident]) -> None:
        """Train to the limit, logging now and then and saving every minute."""
        if self.device == "cuda":
            self.warm(data)
            torch.cuda.synchronize()
        began, saved = time.monotonic() - self.progress.seconds, time.monotonic()
        compiled = self.progress.steps + 3
        for batch in batches(data, self.plan, self.progress.steps):
            fraction = self.fraction(time.monotonic() - began)
            if fraction >= 1.0:
                break
            loss = self.step(batch, fraction)
            self.progress.steps += 1
            self.progress.tokens += batch[0].numel()
            if self.progress.steps <= compiled:
                loss.item()
                began = time.monotonic() - self.progress.seconds
            if self.progress.steps % 50 == 0:
                value = loss.item()
                self.progress.seconds = time.monotonic() - began
                self.report(value)
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        self.progress.seconds = time.monotonic() - began
        self.save()

    def report(self, loss: float) -> None:
        """Log a line; print every tenth."""
        line = json.dumps({**asdict(self.progress), "loss": round(loss, 4)})
        self.log.write(line + "\n")
        if self.progress.steps % 2000 == 0:
            self.log.flush()
            print(self.name, line, flush=True)

    @property
    def checkpoint(self) -> Path:
        """Where the state is saved."""
        return self.out / f"{self.name}.pt"

    def save(self) -> None:
        """Write the state beside the old one, then put it in its place."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"net": self.net.state_dict(), "optimizers": optimizers, "at": asdict(self.progress)}
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def resume(self) -> None:
        """Load the checkpoint if there is one."""
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=self.device)
            self.net.load_state_dict(state["net"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.progress = Progress(**state["at"])


@torch.no_grad()
def exact_shares(run: Run, tokenizer: Tokenizer, count: int) -> dict[str, float]:
    """Share of "train" tasks whose whole answer is the model's greedy answer, by level and by family and level.

    With the right answer fed in, every token being the best one is the same as greedy decoding giving that answer.
    """
    tasks = generate("train", count, SEED)
    hits: dict[str, list[float]] = {}
    for task, row in zip(tasks, corpus.encode(tokenizer, tasks), strict=True):
        ids = torch.tensor([row.ids], device=run.device)
        places = torch.arange(row.start - 1, len(row.ids) - 1, device=run.device)[None]
        right = bool((run.net.logits(ids, places).argmax(-1) == ids[:, row.start :]).all())
        for key in (task.level, f"{task.family}/{task.level}"):
            hits.setdefault(key, []).append(float(right))
    return {key: round(sum(values) / len(values), 3) for key, values in sorted(hits.items())}


def prepared(args: argparse.Namespace) -> tuple[Tokenizer, list[corpus.Bucket]]:
    """The tokenizer (trained unless it is there) and the training rows, with the time they took."""
    began = time.monotonic()
    path = args.out / "tokenizer.json"
    if path.exists():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = vocabulary.train_tokenizer(corpus.tokenizer_texts(SEED, TOKENIZER_TASKS), path)
    print(f"tokenizer of {tokenizer.get_vocab_size()} tokens after {time.monotonic() - began:.0f} s", flush=True)
    rows = corpus.kept_or_built(args.out / "rows.npz", path, SEED, args.rows, args.workers)
    for b in rows:
        print(f"  {len(b.levels):8d} rows of {b.ids.shape[1]:3d} tokens, answers up to {b.window}")
    print(f"data after {time.monotonic() - began:.0f} s", flush=True)
    return tokenizer, rows


def train_one(name: str, args: argparse.Namespace, tokenizer: Tokenizer, data: list[Resident]) -> None:
    """Train one model, check it on "train" tasks, write its GGUF and summary."""
    began = time.monotonic()
    run = Run(name, args.out, args.device, args)
    run.resume()
    run.train(data)
    parameters = sum(weight.numel() for weight in run.net.parameters())
    summary = {
        "model": name,
        "parameters": parameters,
        **asdict(run.progress),
        "wall_seconds": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "exact_on_train_split": exact_shares(run, tokenizer, args.check) if args.check else {},
    }
    export(run.net, tokenizer, f"nano-{name}", run.plan.file_type, args.out / f"nano-{name}.gguf")
    (args.out / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary), flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*PLANS, "small+medium", "all"], default="all")
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--rows", type=int, default=6_000_000, help="training rows to generate")
    parser.add_argument("--seconds", type=float, help="training seconds a model, instead of the plan's")
    parser.add_argument("--steps", type=int, help="optimizer steps a model, instead of a limit in seconds")
    parser.add_argument("--check", type=int, default=3000, help='"train" tasks to check each model on; 0: none')
    parser.add_argument("--workers", type=int, default=16, help="processes that generate data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Prepare the data once, then train what was asked for."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, buckets = prepared(args)
    data = resident(buckets, args.device)
    for name in PLANS if args.model == "all" else args.model.split("+"):
        train_one(name, args, tokenizer, data)


if __name__ == "__main__":
    main()
