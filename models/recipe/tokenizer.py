#!/usr/bin/env python3
"""Trains the byte-level BPE and writes it in the layout of DeepSeek-V3.2's tokenizer.json.

    python tokenizer.py DATA_DIR OUT/tokenizer.json [SIZE]

Same pre-tokenizer, same special and added tokens by content and flags; own small vocabulary, no placeholders.
"""
import json
import pathlib
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

FIRST = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]  # ids 0, 1, 2: special, not normalized
LAST = [  # content, special, normalized; ids follow the merged vocabulary
    ("｜DSML｜", True, False), ("<dsml:", False, True), ("</dsml:", False, True),
    ("<｜search▁begin｜>", False, True), ("<｜search▁end｜>", False, True), ("<think>", False, True), ("</think>", False, True),
    ("<｜fim▁hole｜>", False, True), ("<｜fim▁begin｜>", False, True), ("<｜fim▁end｜>", False, True),
    ("<｜User｜>", False, True), ("<｜Assistant｜>", False, True), ("<|EOT|>", True, True),
] + [(f"<｜{x}｜>", False, True) for x in (
    "tool▁calls▁begin", "tool▁calls▁end", "tool▁call▁begin", "tool▁call▁end",
    "tool▁outputs▁begin", "tool▁outputs▁end", "tool▁output▁begin", "tool▁output▁end", "tool▁sep")]
SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]


def pre_tokenizer():
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(s), "isolated") for s in SPLITS]
                                   + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(texts, size):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizer()
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size - len(LAST), special_tokens=FIRST, show_progress=False,
                                                     initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return json.loads(t.to_str())["model"]


def layout(model):
    """The file, with the keys and order of the published one."""
    def added(i, content, special, normalized):
        return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}

    base = len(model["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(i, c, True, False) for i, c in enumerate(FIRST)] + [added(base + i, *x) for i, x in enumerate(LAST)],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": s}, "behavior": "Isolated", "invert": False} for s in SPLITS]
            + [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": model["vocab"], "merges": merges},
    }


def main(data, out, size=6144):
    import samples
    model = train(samples.tokenizer_text(pathlib.Path(data)), int(size))
    file = layout(model)
    pathlib.Path(out).write_text(json.dumps(file, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    t = Tokenizer.from_file(str(out))
    print(t.get_vocab_size(), "tokens,", pathlib.Path(out).stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
