"""The model of `bench tokens`: a LLaMA of 220 million parameters in F16, random, made on the spot and kept.

Its vocabulary is as large as a real one's: the logits of each token, 128 KB, come back over the wire.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH = 1024
LAYERS = 9
FEED_FORWARD = 4096
HEADS = 16
VOCABULARY = 32_000
CONTEXT = 2048
_SEED = 1


def parameters() -> int:
    """How many there are in the matrices."""
    return 2 * VOCABULARY * WIDTH + LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * FEED_FORWARD)


def make(directory: Path) -> Path:
    """The GGUF file below `directory`, 440 MB; written unless it is there."""
    path = directory / f"llama-{LAYERS}x{WIDTH}-{VOCABULARY}-f16.gguf"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        _write(unfinished)
        unfinished.rename(path)
    return path


def _write(path: Path) -> None:
    random = np.random.default_rng(_SEED)
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    _vocabulary(writer)

    def weights(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(2 * columns**-0.5)
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    ones = np.ones(WIDTH, dtype=np.float32)
    weights("token_embd", VOCABULARY, WIDTH)
    weights("output", VOCABULARY, WIDTH)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", ones)
        writer.add_tensor(f"{block}.ffn_norm.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"{block}.{name}", WIDTH, WIDTH)
        weights(f"{block}.ffn_gate", FEED_FORWARD, WIDTH)
        weights(f"{block}.ffn_up", FEED_FORWARD, WIDTH)
        weights(f"{block}.ffn_down", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    """Three control tokens, the 256 bytes, and words that nobody says."""
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    words = VOCABULARY - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + [f"word{number}".encode() for number in range(words)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * words)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
