#!/usr/bin/env python3
"""Compares model.py with reference results of another implementation: python check.py CASE_DIR ... (config, shards, tokens.json, logits.npy, routes.json, selected.json)."""
import json
import pathlib
import sys

import numpy as np
import torch

import model


def check(path):
    path = pathlib.Path(path)
    c, p = model.load(path)
    s = model.Shape(c, torch.float32, quant=False, mode="dsa" if "index_topk" in c else "dense")
    tokens = torch.tensor([json.loads((path / "tokens.json").read_text())])
    want = {}
    with torch.no_grad():
        y, _ = model.run_all(c, s, p, tokens, want=want)
        z = model.logits(s, p, y)[0].numpy()
    ref = np.load(path / "logits.npy")
    print(path.name, "logits: max difference", abs(z - ref).max(), "of", abs(ref).max(), "; greedy equal", (z.argmax(-1) == ref.argmax(-1)).mean())
    bad = total = 0
    for layer in json.loads((path / "routes.json").read_text())["layers"]:
        for t, e in enumerate(layer["experts"]):
            total += 1
            bad += set(want[layer["layer"]][2][0, t].nonzero()[:, 0].tolist()) != set(e)
    print("  routes:", total, "compared,", bad, "differ")
    if (path / "selected.json").exists():
        bad = total = 0
        for layer in json.loads((path / "selected.json").read_text())["layers"]:
            for t, at in zip(layer["rows"], layer["positions"]):
                total += 1
                bad += want[layer["layer"]][1][0, t].nonzero()[:, 0].tolist() != at
        print("  selections:", total, "compared,", bad, "differ")


for arg in sys.argv[1:]:
    check(arg)
