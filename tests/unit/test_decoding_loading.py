"""Models and tokenizers from files: what comes out is what went in, and what cannot be is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from gguf_maker import byte_alphabet
from stepladder import config
from stepladder.decoding import loading
from stepladder.decoding.loading import Loaded, Wanted, load, look
from stepladder.decoding.models import Feed, LanguageModel
from stepladder.decoding.tokenizer import Detokenizer, Tokenizer
from stepladder.errors import EngineError, MissingExtraError, ModelFileError, RequestError
from stepladder.evaluate.tasks.nano import generate
from tiny_models import KINDS, SPECIALS, TEMPLATE, letters, other_network, save_gguf, tiny_network

NANO = config.PRESETS / "nano"
VOCAB = 272
TOKENS = [7, 100, 41, 3, 3, 250, 80, 12]
SIZES = {"vocab": VOCAB, "hidden": 64, "dtype": torch.float32}


def logits_of(model: LanguageModel, tokens: list[int] = TOKENS) -> torch.Tensor:
    slot = model.open()
    logits = model.forward([Feed(slot, 0, tokens, len(tokens))])[0]
    model.close(slot)
    return logits


def own_logits(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        return network(input_ids=torch.tensor([TOKENS])).logits[0]


# ── GGUF files ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stored", "near"), [("F32", 1e-5), ("F16", 2e-2), ("Q8_0", 2e-1)])
def test_a_model_comes_out_of_a_gguf_file_as_it_went_in(tmp_path, kind, stored, near):
    """Grouped heads, biases (Qwen2), norms of queries and keys (Qwen3) and Llama's order of rows included."""
    network = tiny_network(kind, **SIZES)
    loaded = load(Wanted(source=str(save_gguf(network, tmp_path / "m.gguf", kind=stored)), dtype="float32"))
    torch.testing.assert_close(logits_of(loaded.model), own_logits(network), rtol=near, atol=near)
    assert (loaded.model.context, loaded.model.vocab, loaded.model.parameters) == (
        128,
        VOCAB,
        sum(weight.numel() for weight in network.parameters()),
    )


def test_tied_embeddings_need_no_head_in_the_file(tmp_path):
    network = tiny_network(**SIZES)
    network.lm_head.weight = network.model.embed_tokens.weight
    path = save_gguf(network, tmp_path / "m.gguf", left_out="output.weight")
    torch.testing.assert_close(logits_of(load(str(path)).model), own_logits(network), rtol=1e-5, atol=1e-5)


def test_scaled_positions_are_those_that_the_file_says(tmp_path):
    plain, network = tiny_network(**SIZES), tiny_network(**SIZES)
    network.model.rotary_emb.inv_freq.div_(4.0)
    scaling = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    factors = {"rope_freqs__weight": np.full(8, 4.0, dtype=np.float32)}
    for number, changes in enumerate((scaling, factors)):
        path = save_gguf(plain, tmp_path / f"{number}.gguf", **changes)
        torch.testing.assert_close(logits_of(load(str(path)).model), own_logits(network), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"left_out": "llama.block_count"}, "lacks 'llama.block_count'"),
        ({"left_out": "token_embd.weight"}, "has no token embeddings"),
        ({"left_out": "blk.1.ffn_up.weight"}, "'model.layers.1.mlp.up_proj.weight' is missing, and "),
        ({"llama__block_count": 1}, "and no such weight was expected"),
        ({"llama__feed_forward_length": 96}, r"is \(64, 128\), and \(64, 96\) was expected"),
        ({"blk__0__ssm_in__weight": np.zeros((2, 2), dtype=np.float32)}, "'blk.0.ssm_in.weight' that is not known"),
        ({"llama__expert_count": 4}, "is a mixture of experts"),
        ({"llama__rope__scaling__type": "yarn"}, "scales its positions by 'yarn'"),
        ({"tokenizer__ggml__pre": "tekken"}, "of kind 'gpt2' that splits as 'tekken'; known here is"),
        ({"tokenizer__ggml__model": "llama"}, "of kind 'llama' that splits"),
        ({"tokenizer__ggml__merges": ["q q"]}, "has a damaged tokenizer: .*qq"),
        ({"left_out": "tokenizer.ggml.merges"}, "lacks 'tokenizer.ggml.merges'"),
        ({"left_out": "tokenizer.ggml.tokens"}, "lacks 'tokenizer.ggml.tokens'"),
    ],
)
def test_what_a_gguf_file_lacks_or_has_too_much_is_said(tmp_path, settings, said):
    path = save_gguf(tiny_network(**SIZES), tmp_path / "m.gguf", **settings)
    with pytest.raises(ModelFileError, match=said):
        load(str(path))


FOREIGN = b"\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00rwkv7"
"""The string that names another architecture."""


def test_files_that_are_no_gguf_of_a_known_kind_are_refused(tmp_path):
    whole = save_gguf(tiny_network(**SIZES), tmp_path / "m.gguf").read_bytes()
    cases: dict[str, tuple[bytes | None, str]] = {
        "missing": (None, "cannot be read: No such file"),
        "empty": (b"", "is no GGUF file: it begins with b''"),
        "other": (b"PK\x03\x04....", "is no GGUF file"),
        "cut": (whole[:200], "is damaged"),
        "short": (whole[:-4000], "is damaged"),
        "foreign": (whole.replace(b"\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama", FOREIGN), "'rwkv7'"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / f"{name}.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelFileError, match=said):
            load(str(path))


def test_weights_stored_in_a_way_that_nobody_knows_are_refused(tmp_path, monkeypatch):
    path = save_gguf(tiny_network(**SIZES), tmp_path / "m.gguf")

    def unknown(*_args: Any) -> Any:
        raise NotImplementedError("TQ9")

    monkeypatch.setattr("gguf.dequantize", unknown)
    with pytest.raises(ModelFileError, match=r"weight '[\w.]+' cannot be read: TQ9"):
        load(str(path))


def test_a_text_begins_as_the_file_says(tmp_path):
    begun = save_gguf(
        tiny_network(**SIZES),
        tmp_path / "b.gguf",
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__add_bos_token=True,
    )
    plain = save_gguf(tiny_network(**SIZES), tmp_path / "p.gguf")
    assert load(str(begun)).tokenizer.prompt("a") == [1, *load(str(plain)).tokenizer.prompt("a")]
    assert load(str(begun)).tokenizer.encode("a") == load(str(plain)).tokenizer.encode("a")


def test_digits_are_split_as_the_file_says(tmp_path):
    """Llama 3 takes up to three digits together, Qwen one by one, GPT-2 all."""
    merges = ["1 2", "12 3", "123 4"]
    words = [*SPECIALS, *byte_alphabet(), "12", "123", "1234"]
    seen = {}
    for split in ("qwen2", "llama-bpe", "gpt-2"):
        path = save_gguf(
            tiny_network(**(SIZES | {"vocab": len(words)})),
            tmp_path / f"{split}.gguf",
            tokenizer__ggml__pre=split,
            tokenizer__ggml__tokens=words,
            tokenizer__ggml__token_type=[1] * len(words),
            tokenizer__ggml__merges=merges,
        )
        tokenizer = load(str(path)).tokenizer
        seen[split] = [tokenizer.text_of(token) for token in tokenizer.encode("1234")]
    assert seen == {"qwen2": ["1", "2", "3", "4"], "llama-bpe": ["123", "4"], "gpt-2": ["1234"]}


# ── the embedded models against llama.cpp ────────────────────────────────────

TEXTS = [
    "What is 12 + 7?",
    "1,000.25 and 12345 67",
    "a\n\nb\r\n c\n   \n",
    "ünïcödé – 漢字 🙂👍🏽 👩‍👩‍👧 e\u0301",
    "  leading and trailing  ",
    "\t\ttabs\t",
    "It's we'LL\x00\x01\u00a0x",
    "<|end|> is only a word here",
]


class LlamaCpp:
    """llama.cpp's server in a process of its own."""

    def __init__(self, model: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stepladder.engines.llama_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        settings = {"model": str(model), "n_ctx": 512, "n_parallel": 1, "threads": 1, "load_timeout_s": 60}
        self.process.stdin.write(json.dumps(settings) + "\n")
        self.process.stdin.flush()
        self.port = json.loads(self.process.stdout.readline())["port"]

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answered:  # noqa: S310 - the loopback address
            return json.loads(answered.read())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module", params=["small", "medium"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Loaded, LlamaCpp]]:
    path = NANO / f"nano-{request.param}.gguf"
    server = LlamaCpp(path)
    yield load(Wanted(source=str(path), slots=1)), server
    server.close()


def test_nano_has_llama_cpps_tokens(both):
    """Of plain text, control tokens spelt out included, and of a conversation."""
    (loaded, server), chats = both, []
    for text in TEXTS:
        theirs = server.ask("/tokenize", content=text, add_special=False, parse_special=False)["tokens"]
        assert loaded.tokenizer.encode(text) == theirs
        assert loaded.tokenizer.decode(theirs) == text
        if "<|" not in text:  # llama.cpp takes a user's control tokens at their word
            chats.append([{"role": "user", "content": text}])
    chats.append([{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), TEXTS)])  # noqa: B905
    for messages in chats:
        prompt = server.ask("/apply-template", messages=messages)["prompt"]
        theirs = server.ask("/tokenize", content=prompt, add_special=False, parse_special=True)["tokens"]
        assert loaded.tokenizer.chat(messages) == theirs


def test_nano_answers_as_llama_cpp_does(both):
    """Greedily; weights at 8 bits differ by how activations are rounded, which shows at near ties only."""
    loaded, server = both
    for task in generate("judged", 12, seed=11):
        messages = [{"role": "user", "content": task.prompt}]
        theirs = server.ask("/v1/chat/completions", messages=messages, temperature=0, max_tokens=64)
        assert greedy(loaded, messages, 64) == theirs["choices"][0]["message"]["content"]


def greedy(loaded: Loaded, messages: list[dict[str, str]], most: int) -> str:
    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = tokenizer.chat(messages)
    tokens, read, slot = list(prompt), 0, model.open()
    while len(tokens) < len(prompt) + most:
        token = int(model.forward([Feed(slot, read, tokens[read:], 1)])[0].argmax())
        read = len(tokens)
        if token in tokenizer.eos:
            break
        tokens.append(token)
    model.close(slot)
    return tokenizer.decode(tokens[len(prompt) :])


def test_a_large_nano_loads_with_all_its_numbers():
    loaded = load(Wanted(source=str(NANO / "nano-large.gguf"), context=64, slots=1))
    assert (loaded.model.parameters, loaded.model.vocab, loaded.tokenizer.size) == (13_178_496, 2048, 2048)
    assert loaded.tokenizer.eos == {0, 3}


# ── folders and the hub ──────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    tiny_network("qwen3", dtype=torch.float32, vocab=VOCAB).save_pretrained(place)
    letters()._tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_folder_is_loaded_in_any_dtype(folder, dtype):
    loaded = load(Wanted(source=str(folder), dtype=dtype, context=32, slots=2))
    near = 0.2 if dtype == "bfloat16" else 1e-5
    expected = own_logits(tiny_network("qwen3", dtype=torch.float32, vocab=VOCAB))
    torch.testing.assert_close(logits_of(loaded.model).float(), expected, rtol=near, atol=near)
    assert loaded.model.dtype == loading.DTYPES[dtype]
    assert loaded.tokenizer.chat([{"role": "user", "content": "hi"}])[0] == 1
    assert (loaded.model.name, loaded.model.context, loaded.model.slots) == (str(folder), 32, 2)


def test_weights_in_several_files_are_counted_and_loaded(tmp_path):
    network = tiny_network(dtype=torch.float32, vocab=VOCAB)
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    letters()._tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert loading._elements(tmp_path) == sum(weight.numel() for weight in network.parameters())
    torch.testing.assert_close(logits_of(load(str(tmp_path)).model), own_logits(network), rtol=1e-5, atol=1e-5)


def test_all_that_ends_an_answer_is_known(folder):
    """What configurations name, and control tokens that are called so."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}), "utf-8")
    assert load(str(folder)).tokenizer.eos == {0, 2, 3}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}), "utf-8")
    assert load(str(folder)).tokenizer.eos == {0, 1}
    (folder / "generation_config.json").unlink()
    assert load(str(folder)).tokenizer.eos == {0}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda place: (place / "config.json").unlink(), "cannot be loaded: "),
    (lambda place: (place / "config.json").write_text("{", "utf-8"), "cannot be loaded: "),
    (lambda place: (place / "config.json").write_text('{"model_type": "nobodys"}', "utf-8"), "nobodys"),
    (lambda place: (place / "model.safetensors").unlink(), r"model.safetensors cannot be read: No such file"),
    (lambda place: (place / "model.safetensors").write_bytes(b"x" * 99), "are no safetensors, or damaged"),
    (lambda place: (place / "model.safetensors").write_bytes(b"\x02" + b"\x00" * 7 + b"[]"), "are no safetensors"),
    (lambda place: cut(place / "model.safetensors"), "cannot be loaded: "),
    (lambda place: (place / "tokenizer.json").write_text("{}", "utf-8"), "cannot be loaded: "),
    (lambda place: (place / "model.safetensors.index.json").write_text("[]", "utf-8"), "holds no object"),
    (lambda place: (place / "generation_config.json").write_text("?", "utf-8"), "config.json cannot be read"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_folder_is_told_of(folder, damage, said):
    damage(folder)
    with pytest.raises(ModelFileError, match=said):
        load(str(folder))


def test_weights_that_are_not_there_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=r"lacks 1 of its weights, such as 'model.layers.1.mlp.up_proj.weight'"):
        load(str(folder))


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    trace = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\nclass C: pass\n", "utf-8")
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}}
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(ModelFileError, match="cannot be loaded: "):
        load(str(folder))
    assert not trace.exists()


def test_an_untried_family_is_compared_with_itself(tmp_path, monkeypatch):
    other_network("mistral").save_pretrained(tmp_path)
    letters([*SPECIALS, *map(chr, range(33, 93))])._tokenizer.save_pretrained(tmp_path)
    assert load(str(tmp_path)).model.context == 64
    monkeypatch.setattr(loading, "own_logits", lambda network: torch.zeros(8, 64))
    with pytest.raises(EngineError, match=r"\(mistral\) cannot be run here: read through a cache"):
        load(str(tmp_path))


@pytest.fixture
def _reachable(monkeypatch) -> None:
    """No test asks the hub."""
    monkeypatch.setattr("stepladder.hub._unreachable", lambda endpoint: None)


@pytest.mark.usefixtures("_reachable")
def test_repositories_of_the_hub_are_fetched_without_code_and_pickles(folder, monkeypatch):
    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(repo: str, **settings: Any) -> str:
        asked.append((repo, settings))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for source in ("Org/tiny-1.5B", "hub:Org/tiny-1.5B@main"):
        assert load(source).model.name == source
    assert [(repo, settings["revision"]) for repo, settings in asked] == [
        ("Org/tiny-1.5B", None),
        ("Org/tiny-1.5B", "main"),
    ]
    patterns = asked[0][1]["allow_patterns"]
    assert "*.safetensors" in patterns
    assert not {"*.bin", "*.pt", "*.py", "*"} & set(patterns)


def hub_error(kind: str) -> Exception:
    """As the hub's library raises it: with an address, an id and advice, over several lines."""
    from huggingface_hub import errors

    address = "https://huggingface.co/api/models/org/tiny/revision/main"
    words = f"404 Client Error. (Request ID: Root=1-2;3)\n\nRepository Not Found for url: {address}.\nPlease check."
    if kind == "LocalEntryNotFoundError":
        return errors.LocalEntryNotFoundError("An error happened.\nPlease check your connection.")
    return getattr(errors, kind)(words, response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("RepositoryNotFoundError", "the hub has no such repository, or it is private and HF_TOKEN is not set"),
        ("GatedRepoError", "its owner has to grant access first; then set HF_TOKEN"),
        ("RevisionNotFoundError", "the repository has no such revision"),
        ("LocalEntryNotFoundError", "it is not on this machine, and the hub cannot be reached"),
        ("HfHubHTTPError", "404 Client Error"),
    ],
)
@pytest.mark.usefixtures("_reachable")
def test_what_cannot_be_fetched_is_said_in_one_sentence(monkeypatch, kind, said):
    def fails(_repo: str, **_settings: Any) -> str:
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(ModelFileError, match=f"the model 'org/tiny' could not be fetched: {said}$"):
        load("org/tiny")


def test_a_repository_is_not_waited_for_where_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"it waits {seconds} s for another try"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    told = "the model 'org/tiny' could not be fetched: it is not on this machine, and the hub cannot be reached at"
    with pytest.raises(ModelFileError, match=f"^{told} http://127.0.0.1:9 "):
        load("org/tiny")


@pytest.mark.usefixtures("_reachable")
def test_other_errors_of_fetching_are_told_by_their_first_sentence(monkeypatch):
    for error, said in (
        (OSError("\n  The disk is full. Free some space.\nhint"), "The disk is full"),
        (OSError(), "OSError"),
    ):
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, raised=error, **__: throw(raised))
        with pytest.raises(ModelFileError, match=f"could not be fetched: {said}$"):
            load("org/tiny")


def throw(error: Exception) -> str:
    raise error


@pytest.mark.parametrize("source", ["nothing", "a/b/c", "org/", "hub:tiny", ""])
def test_sources_that_name_nothing_are_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "is no folder, no GGUF file and no OWNER/NAME" if source else "cannot be loaded|cannot be read"
    with pytest.raises(ModelFileError, match=said):
        load(source)


# ── settings ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "float31"}, "unknown dtype 'float31'; did you mean 'float32'?"),
        ({"device": "tpu"}, "device 'tpu' is not auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"context": 513}, "up to 512 positions here; context 513"),
        ({"slots": 0}, "slots and chunk must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(EngineError, match=f"model 'small': {said}|model 'small' can be run on {said}"):
        load(Wanted(source=str(NANO / "nano-small.gguf"), name="small", **settings))


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folder, monkeypatch):
    """Weights count in the dtype that they are loaded in, not in the one of the file."""
    shutil.copy(NANO / "nano-small.gguf", folder / "small.gguf")
    monkeypatch.setattr("stepladder.decoding.gguf_file.GGUFFile.network", lambda *_: pytest.fail("was read"))
    weights, cache = 529_056, 3 * 2 * 512 * 96
    for dtype, size in (("float32", 4), ("float16", 2)):
        need = size * (weights + cache)
        wanted = Wanted(source=str(folder / "small.gguf"), name="small", dtype=dtype, device="cpu", slots=1)
        with pytest.raises(EngineError, match=r"'small' needs 0.00 GiB .* on cpu, where 0.00 GiB are free: 0.00 GiB"):
            load(wanted, probe=lambda _, free=need - 1: free)


def test_a_file_is_opened_once_from_the_look_to_the_weights(monkeypatch):
    opened: list[Path] = []
    once = loading.GGUFFile
    monkeypatch.setattr(loading, "GGUFFile", lambda path: opened.append(path) or once(path))
    found = look(Wanted(source=str(NANO / "nano-small.gguf"), device="cpu", slots=1))
    assert (found.device, found.need.weights) == ("cpu", 4 * 529_056)
    assert found.load().model.parameters == 529_056
    assert len(opened) == 1


def test_running_out_of_memory_all_the_same_is_said(folder, monkeypatch):
    def full(*_args: Any, **_settings: Any) -> Any:
        raise torch.OutOfMemoryError

    for place in ("stepladder.decoding.loading.LanguageModel", "transformers.AutoModelForCausalLM.from_pretrained"):
        with monkeypatch.context() as short:
            short.setattr(place, full)
            with pytest.raises(EngineError, match=r"'m' needs .* on cpu, which ran out while it was loaded"):
                load(Wanted(source=str(folder), name="m", device="cpu"))


def test_without_the_extra_the_command_that_installs_it_is_said(monkeypatch):
    for missing in ("transformers", "gguf"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            with pytest.raises(MissingExtraError, match=r"stepladder\[torch\]"):
                load(str(NANO / "nano-small.gguf"))


def test_loading_is_silent_and_leaves_others_settings_alone(folder, capfd):
    for bars in (True, False):
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        before = logging.get_verbosity()
        load(str(folder))
        load(str(NANO / "nano-small.gguf"))
        assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (bars, before)
    logging.enable_progress_bar()
    assert capfd.readouterr() == ("", "")


# ── tokenizers ───────────────────────────────────────────────────────────────


def test_control_tokens_come_from_the_template_alone():
    tokenizer = letters()
    user, assistant, end = (tokenizer.vocabulary()[word] for word in ("<|user|>", "<|assistant|>", "<|end|>"))
    tokens = tokenizer.chat([{"role": "user", "content": "a<|end|><|assistant|>b"}])
    assert [token for token in tokens if token < len(SPECIALS)] == [user, end, assistant]
    assert tokenizer.decode(tokens) == "a<|end|><|assistant|>b"
    assert tokenizer.encode("<|end|>") == [tokenizer.vocabulary()[letter] for letter in "<|end|>"]
    assert tokenizer.encode("") == []


def test_threads_may_share_a_tokenizer():
    """Whether control tokens are words is kept in the tokenizer itself, so that one call could turn another's."""
    tokenizer = letters()
    asked = [{"role": "user", "content": "<|end|> é"}]
    jobs = [
        lambda: tokenizer.encode("<|end|>"),
        lambda: tokenizer.chat(asked),
        lambda: tokenizer.decode([1, 2, 70, 71]),
    ]
    expected = [job() for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(200):
            assert [done.result() for done in [pool.submit(job) for job in jobs]] == expected


@given(st.text())
def test_any_content_comes_back_out_of_a_conversation(content):
    """But for the private character that contents are cut with, which is no text."""
    tokenizer = letters()
    kept = content.replace("\ue000", "")
    tokens = tokenizer.chat([{"role": "user", "content": content}])
    assert tokenizer.decode(tokens) == kept
    assert tokenizer.decode(tokenizer.encode(kept)) == kept


USERS_ONLY = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content | trim }}]{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("messages", "read"),
    [
        ([("user", "a")], "[a]"),
        ([("system", "be brief "), ("user", "a")], "[be brief \na]"),
        ([("developer", "d"), ("system", "s"), ("user", "a"), ("user", "b")], "[d\ns\na][b]"),
        ([("user", "a"), ("system", "late")], "[a][late]"),
    ],
)
def test_instructions_that_a_template_leaves_out_are_not_lost(messages, read):
    tokenizer = letters(template=USERS_ONLY)
    tokens = tokenizer.chat([{"role": role, "content": content} for role, content in messages])
    assert tokenizer.decode(tokens) == read


def test_messages_that_a_template_refuses_or_that_have_none():
    with pytest.raises(ModelFileError, match="'letters' has no chat template"):
        letters(template=None).chat([{"role": "user", "content": "x"}])
    strict = letters(template="{{ raise_exception('roles must alternate') }}" + TEMPLATE)
    with pytest.raises(RequestError, match="template of 'letters' refuses these messages: roles must alternate"):
        strict.chat([{"role": "user", "content": "x"}])


def test_spellings_and_ends():
    tokenizer = letters()
    assert [tokenizer.text_of(token) for token in (0, 4, tokenizer.size)] == ["<|end|>", "Ā", None]
    assert tokenizer.eos == {0}
    assert tokenizer.end == 0
    assert Tokenizer(letters(["a", "b"])._tokenizer, name="x").end is None


def metaspace() -> Tokenizer:
    """SentencePiece's kind: words begin with ▁, what is unknown is spelt in bytes, the first space goes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "é"]
    backend = Backend(models.BPE({word: number for number, word in enumerate(words)}, [("▁", "a")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), name="metaspace")


@pytest.mark.parametrize("tokenizer", [letters(), metaspace()], ids=["bytes", "metaspace"])
@given(data=st.data())
def test_pieces_join_to_the_whole_and_split_no_character(tokenizer, data):
    """Of any tokens, in any portions: of texts, and of bytes that are no text where that takes nothing back."""
    first = 257 if tokenizer.name == "metaspace" else 0
    text, noise = data.draw(st.text()), data.draw(st.lists(st.integers(first, tokenizer.size - 1)))
    tokens = [*tokenizer.encode(text), *noise, *tokenizer.encode(text)]
    portions = data.draw(st.lists(st.integers(1, 4), min_size=len(tokens), max_size=len(tokens)))
    detokenizer, pieces, at = Detokenizer(tokenizer), [], 0
    for portion in portions:
        pieces.append(detokenizer.push(tokens[at : at + portion]))
        at += portion
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(tokens)
    assert detokenizer.finish() == ""


def test_a_character_is_told_once_it_is_whole():
    tokenizer = letters()
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([token]) for token in tokenizer.encode("é🙂a")] == ["", "é", "", "", "", "🙂", "a"]
    assert detokenizer.push(tokenizer.encode("🙂")[:2]) == ""
    assert detokenizer.finish() == "\ufffd"
