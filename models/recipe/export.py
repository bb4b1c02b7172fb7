"""Writes a checkpoint in the published form: FP8 with block scales, the draft layer without its copies, shards below 16 MiB.

    python export.py CHECKPOINT OUT TOKENIZER.json      writes a checkpoint again
"""
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

import model

LIMIT = 15_500_000


def stored(p):
    """Published tensors by name, in order of the layers."""
    out = {}

    def put(name, t):
        t = t.detach().float().cpu()
        if model.is_fp8(name):
            scale = model.block_scales(t)
            out[name] = (t / model.spread(scale, *t.shape)).clamp(-448, 448).to(torch.float8_e4m3fn)
            out[name + "_scale_inv"] = scale
        elif "norm" in name or name.endswith("bias"):
            out[name] = t
        else:
            out[name] = t.bfloat16()

    for name, t in p.items():
        if ".experts." in name:
            head, tail = name.split(".experts.")
            for i in range(t.shape[0]):
                put(f"{head}.experts.{i}.{tail}", t[i])
        else:
            put(name, t)
    return {k: v.contiguous() for k, v in out.items()}


def write(c, p, out, tokenizer=None):
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("model-*.safetensors"):
        old.unlink()
    shards, size = [{}], 0
    for k, t in stored(p).items():
        n = t.numel() * t.element_size() + len(k) + 90
        if size + n > LIMIT:
            shards.append({})
            size = 0
        shards[-1][k] = t
        size += n
    weight_map, total = {}, 0
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):06d}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        weight_map |= {k: name for k in shard}
        total += sum(t.numel() * t.element_size() for t in shard.values())
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, separators=(",", ":")) + "\n")
    (out / "config.json").write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0, "top_p": 0.95}, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": False, "add_eos_token": False, "bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜end▁of▁sentence｜>",
        "legacy": True, "model_max_length": c["max_position_embeddings"], "clean_up_tokenization_spaces": False, "tokenizer_class": "LlamaTokenizerFast", "unk_token": None}, ensure_ascii=False, indent=2) + "\n")
    if tokenizer:
        shutil.copy(tokenizer, out / "tokenizer.json")


if __name__ == "__main__":
    import sys
    config, parameters = model.load(sys.argv[1])
    write(config, parameters, pathlib.Path(sys.argv[2]), sys.argv[3])
