"""Makes a small LLaMA with random weights on the spot: real in form, nonsense in content, the same every time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_BYTES = 3 + 256
"""Tokens of every vocabulary here."""


@dataclass(frozen=True)
class Shape:
    """The size of the model. The defaults make 1.5 M parameters in 6 MB."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    feed_forward: int = 384
    context: int = 512
    words: int = 0
    """Tokens besides the 256 bytes; nobody says them, but their logits are sent."""
    half: bool = False
    """Matrices in F16."""

    @property
    def parameters(self) -> int:
        """How many there are in the matrices."""
        layer = 4 * self.width * self.width + 3 * self.width * self.feed_forward
        return 2 * (_BYTES + self.words) * self.width + self.layers * layer


def make(path: Path, shape: Shape = Shape(), *, seed: int = 1) -> Path:
    """Write a GGUF file to `path`, whose vocabulary is three control tokens, the 256 bytes, and `shape.words`."""
    _write(gguf.GGUFWriter(str(path), "llama", use_temp_file=True), shape, seed)
    return path


def split(path: Path, shape: Shape = Shape(), *, tensors: int, seed: int = 1) -> list[Path]:
    """The same in parts of `tensors` tensors, named after `path` as llama.cpp wants it."""
    _write(gguf.GGUFWriter(str(path), "llama", split_max_tensors=tensors), shape, seed)
    return sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


def _write(writer: gguf.GGUFWriter, shape: Shape, seed: int) -> None:
    random = np.random.default_rng(seed)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)

    control = [b"<unk>", b"<s>", b"</s>"]
    tokens = control + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    tokens += [f"word{number}".encode() for number in range(shape.words)]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * shape.words
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def weights(*dimensions: int) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
        spread = dimensions[-1] ** -0.5
        values: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = random.standard_normal(dimensions, dtype=np.float32)
        return (values * np.float32(2 * spread)).astype(np.float16 if shape.half else np.float32)

    ones = np.ones(shape.width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", weights(len(tokens), shape.width))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", weights(len(tokens), shape.width))
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", ones)
        writer.add_tensor(f"{block}.ffn_norm.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}.{name}.weight", weights(shape.width, shape.width))
        writer.add_tensor(f"{block}.ffn_gate.weight", weights(shape.feed_forward, shape.width))
        writer.add_tensor(f"{block}.ffn_up.weight", weights(shape.feed_forward, shape.width))
        writer.add_tensor(f"{block}.ffn_down.weight", weights(shape.width, shape.feed_forward))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
