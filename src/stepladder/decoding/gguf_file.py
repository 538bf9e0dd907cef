"""Models from GGUF files: the weights, dequantised, in transformers' own model; the tokenizer, rebuilt.

transformers can read such files too, but only beside another library, without what the file says of scaled rotations,
and it takes GPT-2's way of splitting text for every way that it does not know. What is not known here is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stepladder.errors import MissingExtraError, ModelFileError

MAGIC = b"GGUF"
CONTROL, USER_DEFINED = 3, 4

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""GGUF's name of an architecture → transformers' class."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is split before byte pairs are merged; digits go in the groups that are filled in."""

SPLITS: Mapping[str, str | None] = {
    "gpt-2": None,  # GPT-2's own pattern, which tokenizers has built in
    "qwen2": WORDS % "",
    "deepseek-r1-qwen": WORDS % "",
    "llama-bpe": WORDS % "{1,3}",
    "llama3": WORDS % "{1,3}",
}
WHOLE_WORDS = ("llama-bpe", "llama3")
"""Where a word that is a token by itself is taken whole, whatever the merges."""

_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>\w+)\.(?P<what>weight|bias)")
ROTATIONS = "rope_freqs.weight"


class Ends(NamedTuple):
    """Ids of special tokens: those that begin and pad a text, and all that may end one."""

    begin: int | None
    pad: int | None
    end: tuple[int, ...]


class GGUFFile:
    """One file, opened; its weights are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError for a file that cannot be read, and for an architecture that is not known here."""
        try:
            import gguf
        except ImportError as error:
            raise MissingExtraError(f"the model file {path}", "torch") from error
        _verify(path)
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, KeyError, IndexError, OverflowError, OSError, MemoryError) as error:
            raise ModelFileError(f"the model file {path} is damaged: {error}") from error
        self._dequantize: Callable[[Any, Any], NDArray[Any]] = gguf.dequantize
        self.architecture = ""
        self.architecture = str(self.get("general.architecture", "nothing"))
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ModelFileError(
                f"the model file {path} is of architecture '{self.architecture}'; GGUF files of {known} can be read "
                "here, other models from a folder with safetensors"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the header; ``*.`` at its beginning stands for the architecture."""
        field = self._reader.get_field(key.replace("*", self.architecture, 1))
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """A value of the header that must be there; raises ModelFileError where it is not."""
        value = self.get(key)
        if value is None:
            raise ModelFileError(f"the model file {self.path} lacks '{key.replace('*', self.architecture, 1)}'")
        return value

    def elements(self) -> int:
        """Numbers that the weights are, however they are stored."""
        return sum(int(tensor.n_elements) for tensor in self._reader.tensors)

    def config(self) -> Any:
        """transformers' configuration of the model. Raises ModelFileError for what its class cannot express."""
        import transformers

        if self.get("*.expert_count", 0):
            raise ModelFileError(f"the model file {self.path} is a mixture of experts; load it from safetensors")
        heads, hidden = int(self.need("*.attention.head_count")), int(self.need("*.embedding_length"))
        shape = self._shapes().get("token_embd.weight")
        if shape is None:
            raise ModelFileError(f"the model file {self.path} has no token embeddings")
        ends = self.ends()
        config = getattr(transformers, ARCHITECTURES[self.architecture]).config_class(
            vocab_size=shape[0],
            hidden_size=hidden,
            intermediate_size=int(self.need("*.feed_forward_length")),
            num_hidden_layers=int(self.need("*.block_count")),
            num_attention_heads=heads,
            num_key_value_heads=int(self.get("*.attention.head_count_kv", heads)),
            head_dim=int(self.get("*.attention.key_length", hidden // heads)),
            max_position_embeddings=int(self.need("*.context_length")),
            rms_norm_eps=float(self.need("*.attention.layer_norm_rms_epsilon")),
            rope_parameters=self._rotation(),
            tie_word_embeddings="output.weight" not in self._shapes(),
            bos_token_id=ends.begin,
            eos_token_id=list(ends.end) or None,
            pad_token_id=ends.pad,
        )
        config.architectures = [ARCHITECTURES[self.architecture]]
        return config

    def ends(self) -> Ends:
        """Ids of special tokens."""
        named = (self.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        return Ends(
            begin=self.get("tokenizer.ggml.bos_token_id"),
            pad=self.get("tokenizer.ggml.padding_token_id"),
            end=tuple(dict.fromkeys(int(token) for token in named if token is not None)),
        )

    def network(self, dtype: torch.dtype) -> Any:
        """transformers' model with the file's weights in ``dtype``.

        Raises ModelFileError where weights are missing, unknown or of another shape than the header says.
        """
        import transformers

        kind = getattr(transformers, ARCHITECTURES[self.architecture])
        config = self.config()
        with torch.device("meta"):
            expected = {name: tuple(weight.shape) for name, weight in kind(config).state_dict().items()}
        if config.tie_word_embeddings:
            expected.pop("lm_head.weight", None)
        weights = dict(self._weights(config, dtype))
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ModelFileError(
                    f"the model file {self.path}: '{name}' is {found.get(name, 'missing')}, "
                    f"and {expected.get(name, 'no such weight')} was expected"
                )
        network = kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
        if ROTATIONS in self._shapes():
            factors = torch.from_numpy(self._array(ROTATIONS))
            network.model.rotary_emb.inv_freq.div_(factors)
        return network

    def tokenizer(self) -> Any:
        """The tokenizer as transformers has it. Raises ModelFileError for kinds that are not known here."""
        from transformers import PreTrainedTokenizerFast

        tokens, ends = [str(token) for token in self.need("tokenizer.ggml.tokens")], self.ends()

        def named(token: int | None) -> str | None:
            return None if token is None or token >= len(tokens) else tokens[token]

        return PreTrainedTokenizerFast(
            tokenizer_object=self._byte_pairs(tokens),
            bos_token=named(ends.begin),
            eos_token=named(ends.end[0]) if ends.end else None,
            pad_token=named(ends.pad),
            chat_template=self.get("tokenizer.chat_template"),
            clean_up_tokenization_spaces=False,
        )

    def _byte_pairs(self, tokens: list[str]) -> Any:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

        kind, split = self.get("tokenizer.ggml.model"), self.get("tokenizer.ggml.pre")
        if kind != "gpt2" or split not in SPLITS:
            raise ModelFileError(
                f"the model file {self.path} has a tokenizer of kind '{kind}' that splits as '{split}'; known here is "
                f"kind 'gpt2' that splits as one of {', '.join(SPLITS)}: load this model from its original folder"
            )
        merges = [tuple(merge.split(" ", 1)) for merge in self.need("tokenizer.ggml.merges")]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        try:
            tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split in WHOLE_WORDS))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ModelFileError(f"the model file {self.path} has a damaged tokenizer: {error}") from error
        pattern = SPLITS[split]
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        tokenizer.pre_tokenizer = (
            whole
            if pattern is None
            else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), whole])
        )
        tokenizer.decoder = decoders.ByteLevel()
        begin = self.ends().begin
        if self.get("tokenizer.ggml.add_bos_token", False) and begin is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[tokens[begin], "$A"], special_tokens=[(tokens[begin], begin)]
            )
        kinds = self.get("tokenizer.ggml.token_type", [])
        for wanted, special in ((CONTROL, True), (USER_DEFINED, False)):
            tokenizer.add_tokens(
                [
                    AddedToken(token, special=special, normalized=False)
                    for token, given in zip(tokens, kinds, strict=False)
                    if given == wanted
                ]
            )
        return tokenizer

    def _rotation(self) -> dict[str, Any]:
        rotation: dict[str, Any] = {"rope_theta": float(self.get("*.rope.freq_base", 10000.0)), "rope_type": "default"}
        scaling = self.get("*.rope.scaling.type", "none")
        if scaling == "linear":
            return rotation | {"rope_type": "linear", "factor": float(self.need("*.rope.scaling.factor"))}
        if scaling != "none":
            raise ModelFileError(f"the model file {self.path} scales its positions by '{scaling}'; not known here")
        return rotation

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in self._reader.tensors}

    def _array(self, name: str) -> NDArray[np.float32]:
        tensor = next(tensor for tensor in self._reader.tensors if tensor.name == name)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        try:
            return np.array(self._dequantize(tensor.data, tensor.tensor_type), dtype=np.float32).reshape(shape)
        except (NotImplementedError, ValueError) as error:
            raise ModelFileError(f"the model file {self.path}: weight '{name}' cannot be read: {error}") from error

    def _weights(self, config: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        for tensor in self._reader.tensors:
            if tensor.name == ROTATIONS:
                continue
            array = self._array(tensor.name)
            name = _OUTSIDE.get(tensor.name) or self._block_name(tensor.name)
            if self.architecture == "llama" and (heads := _rotated_heads(name, config)):
                array = _unpermuted(array, heads)
            yield name, torch.from_numpy(array).to(dtype)

    def _block_name(self, name: str) -> str:
        found = _IN_BLOCK.fullmatch(name)
        if found is None or found["part"] not in _BLOCK:
            raise ModelFileError(f"the model file {self.path} has a weight '{name}' that is not known here")
        return f"model.layers.{found['layer']}.{_BLOCK[found['part']]}.{found['what']}"


def _verify(path: Path) -> None:
    try:
        with path.open("rb") as opened:
            magic = opened.read(len(MAGIC))
    except OSError as error:
        raise ModelFileError(f"the model file {path} cannot be read: {error.strerror or error}") from error
    if magic != MAGIC:
        raise ModelFileError(f"the model file {path} is no GGUF file: it begins with {magic!r}, not {MAGIC!r}")


def _rotated_heads(name: str, config: Any) -> int:
    """Heads in a weight that llama.cpp keeps in another order of rows; 0 for all others."""
    if ".self_attn.q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".self_attn.k_proj." in name else 0


def _unpermuted(array: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """From pairs that lie side by side, as llama.cpp rotates a Llama, to halves, as transformers does."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))
