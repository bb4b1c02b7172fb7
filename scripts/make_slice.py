#!/usr/bin/env python3
"""Writes a full-width slice of DeepSeek-V3.2 with random weights, for benchmarks.

    scripts/make_slice.py OUT_DIR [--moe-layers N] [--experts N] [--vocab N]

One dense layer and N MoE layers with the published dimensions, FP8 with 128x128 block scales, in the published form.
Weights are random and non-zero and keep activations near one; the text the slice writes means nothing. One MoE layer
with 256 experts takes 12.3 GB. Standard library only.
"""

import argparse
import json
import math
import os
import pathlib
import random
import struct
import sys

HIDDEN, Q_RANK, KV_RANK, HEADS = 7168, 1536, 512, 128
NOPE, ROPE, VALUE = 128, 64, 128
INDEX_HEADS, INDEX_DIM = 64, 128
DENSE, INTER = 18432, 2048
POOL_BYTES = 64 << 20
SHARD_BYTES = 4 << 30
FP8_RMS = 3.6  # of the codes that FP8_CODES gives

# Any byte -> a finite FP8 code of magnitude 0.5 to 7.5, the sign kept.
FP8_CODES = bytes((b & 0x80) | (0x30 + (b & 0x1F)) for b in range(256))


def config(args):
    return {
        "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "attention_bias": False,
        "vocab_size": args.vocab, "hidden_size": HIDDEN, "intermediate_size": DENSE, "moe_intermediate_size": INTER,
        "num_hidden_layers": 1 + args.moe_layers, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "n_routed_experts": args.experts, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
        "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "hidden_act": "silu", "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "q_lora_rank": Q_RANK, "kv_lora_rank": KV_RANK, "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "index_n_heads": INDEX_HEADS, "index_head_dim": INDEX_DIM,
        "index_topk": 2048, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "max_position_embeddings": 163840, "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
    }  # fmt: skip


class Weights:
    """Random bytes for a tensor: a stretch of one pool, at a place of its own."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.pool = self.random.randbytes(POOL_BYTES)
        self.fp8_pool = self.pool.translate(FP8_CODES)

    def _stretches(self, pool, size):
        while size > 0:
            start = self.random.randrange(0, POOL_BYTES // 2)
            piece = pool[start : start + min(size, POOL_BYTES // 2)]
            yield piece
            size -= len(piece)

    def fp8(self, rows, cols):
        return self._stretches(self.fp8_pool, rows * cols)

    def scales(self, rows, cols):
        scale = 2.0 ** round(math.log2(1.0 / (math.sqrt(cols) * FP8_RMS)))
        yield struct.pack("<f", scale) * (math.ceil(rows / 128) * math.ceil(cols / 128))

    def bf16(self, rows, cols, std):
        # BF16 patterns of either sign within a factor of four below 2 std.
        exponent = 127 + math.floor(math.log2(std))
        table = [((s << 15) | ((exponent - e) << 7) | m) for s in (0, 1) for e in (0, 1) for m in range(0, 128, 2)]
        lines = [b"".join(struct.pack("<H", self.random.choice(table)) for _ in range(1 << 14)) for _ in range(16)]
        size = rows * cols * 2
        while size > 0:
            piece = self.random.choice(lines)[:size]
            yield piece
            size -= len(piece)

    def vector(self, count, centre, spread):
        yield struct.pack(f"<{count}f", *(centre + spread * self.random.uniform(-1, 1) for _ in range(count)))


def tensors(args, w):
    """Yields (name, dtype, shape, byte pieces)."""

    def linear(name, rows, cols):
        yield name + ".weight", "F8_E4M3", [rows, cols], w.fp8(rows, cols)
        shape = [math.ceil(rows / 128), math.ceil(cols / 128)]
        yield name + ".weight_scale_inv", "F32", shape, w.scales(rows, cols)

    def plain(name, rows, cols, std):
        yield name, "BF16", [rows, cols], w.bf16(rows, cols, std)

    def vector(name, count, centre=1.0, spread=0.2):
        yield name, "F32", [count], w.vector(count, centre, spread)

    def ffn(prefix, width):
        yield from linear(prefix + "gate_proj", width, HIDDEN)
        yield from linear(prefix + "up_proj", width, HIDDEN)
        yield from linear(prefix + "down_proj", HIDDEN, width)

    yield from plain("model.embed_tokens.weight", args.vocab, HIDDEN, 1.0)
    for layer in range(1 + args.moe_layers):
        p = f"model.layers.{layer}."
        a = p + "self_attn."
        yield from vector(p + "input_layernorm.weight", HIDDEN)
        yield from vector(p + "post_attention_layernorm.weight", HIDDEN)
        yield from linear(a + "q_a_proj", Q_RANK, HIDDEN)
        yield from vector(a + "q_a_layernorm.weight", Q_RANK)
        yield from linear(a + "q_b_proj", HEADS * (NOPE + ROPE), Q_RANK)
        yield from linear(a + "kv_a_proj_with_mqa", KV_RANK + ROPE, HIDDEN)
        yield from vector(a + "kv_a_layernorm.weight", KV_RANK)
        yield from linear(a + "kv_b_proj", HEADS * (NOPE + VALUE), KV_RANK)
        yield from linear(a + "o_proj", HIDDEN, HEADS * VALUE)
        yield from linear(a + "indexer.wq_b", INDEX_HEADS * INDEX_DIM, Q_RANK)
        yield from linear(a + "indexer.wk", INDEX_DIM, HIDDEN)
        yield from vector(a + "indexer.k_norm.weight", INDEX_DIM)
        yield from vector(a + "indexer.k_norm.bias", INDEX_DIM, 0.0)
        yield from plain(a + "indexer.weights_proj.weight", INDEX_HEADS, HIDDEN, 1 / math.sqrt(HIDDEN))
        if layer == 0:
            yield from ffn(p + "mlp.", DENSE)
            continue
        yield from plain(p + "mlp.gate.weight", args.experts, HIDDEN, 1 / math.sqrt(HIDDEN))
        yield from vector(p + "mlp.gate.e_score_correction_bias", args.experts, 0.0, 0.1)
        for expert in range(args.experts):
            yield from ffn(f"{p}mlp.experts.{expert}.", INTER)
        yield from ffn(p + "mlp.shared_experts.", INTER)
    yield from vector("model.norm.weight", HIDDEN)
    yield from plain("lm_head.weight", args.vocab, HIDDEN, 2.5 / math.sqrt(HIDDEN))


def write_shard(path, group):
    header, offset = {}, 0
    for name, dtype, shape, _ in group:
        size = math.prod(shape) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, pieces in group:
            for piece in pieces:
                file.write(piece)
        assert file.tell() == 8 + len(text) + offset, path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--moe-layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=256, help="a multiple of 8")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.experts % 8 or args.experts < 16:
        parser.error("--experts must be a multiple of 8, at least 16")
    args.out.mkdir(parents=True, exist_ok=True)
    weights = Weights(args.seed)

    groups, size = [[]], 0
    for tensor in tensors(args, weights):
        if size > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += math.prod(tensor[2])
    weight_map = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):06d}.safetensors"
        write_shard(args.out / name, group)
        weight_map.update({tensor[0]: name for tensor in group})
        print(f"{name}: {os.path.getsize(args.out / name) / 1e9:.1f} GB", file=sys.stderr)
    (args.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (args.out / "config.json").write_text(json.dumps(config(args), indent=2) + "\n")


if __name__ == "__main__":
    main()
