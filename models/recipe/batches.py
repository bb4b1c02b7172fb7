"""Packs samples into rows of fixed length, in a background thread.

Short rows hold several samples; long rows hold a tool prompt once and several conversations that continue it (each sees
the prompt and itself, at the positions it would have alone), or long prose.
"""
import io
import lzma
import queue
import threading

import numpy as np
import torch

from samples import FORWARD, HELD_TEXT, HELD_TOOL, LONG, PREFIX, PROSE, REVERSE, TALK, THINK, TOOL, TURNS

WEIGHT = {FORWARD: 1.0, THINK: 1.0, TURNS: 1.0, LONG: 0.3, REVERSE: 1.0, TALK: 1.0, PROSE: 0.5, TOOL: 1.0, PREFIX: 0.0, HELD_TEXT: 1.0, HELD_TOOL: 1.0}


class Data:
    def __init__(self, path):
        z = np.load(io.BytesIO(lzma.open(path).read()))
        raw = z["tokens"]
        self.tokens, self.spoken = (raw & 0x7FFF).astype(np.int32), raw >= 0x8000
        self.starts, self.kind, self.prefix = z["starts"].astype(np.int64), z["kind"], z["prefix"].astype(np.int64)
        self.length = np.diff(self.starts)
        self.weight = np.array([WEIGHT[k] for k in range(len(WEIGHT))], np.float32)[self.kind]
        self.prefixes = np.flatnonzero(self.kind == PREFIX)

    def of(self, *kinds):
        return np.flatnonzero(np.isin(self.kind, kinds))


def lay_out(data, rows, L):
    """rows: list of (samples, prefix sample or -1). -> dict of arrays [B, L]."""
    B = len(rows)
    out = {"tokens": np.full((B, L), 2, np.int32), "doc": np.zeros((B, L), np.int16), "parent": np.zeros((B, L), np.int16), "pos": np.zeros((B, L), np.int16), "weight": np.zeros((B, L), np.float32)}
    doc, row, at, first, local, parent = [], [], [], [], [], []
    for b, (ids, prefix) in enumerate(rows):
        offset, base, n = 0, 0, 1
        if prefix >= 0:
            doc.append(prefix), row.append(b), at.append(0), first.append(0), local.append(1), parent.append(1)
            offset = base = int(data.length[prefix])
            n = 2
        for i in ids:
            doc.append(i), row.append(b), at.append(offset), first.append(base), local.append(n), parent.append(1 if prefix >= 0 else n)
            offset += int(data.length[i])
            n += 1
    doc, row, at, first, local, parent = (np.asarray(x, np.int64) for x in (doc, row, at, first, local, parent))
    length = np.minimum(data.length[doc], L - at)
    inner = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    src = np.repeat(data.starts[doc], length) + inner
    dst = np.repeat(row * L + at, length) + inner
    out["tokens"].reshape(-1)[dst] = data.tokens[src]
    out["doc"].reshape(-1)[dst] = np.repeat(local, length)
    out["parent"].reshape(-1)[dst] = np.repeat(parent, length)
    out["pos"].reshape(-1)[dst] = np.repeat(first, length) + inner
    out["weight"].reshape(-1)[dst] = data.spoken[src] * np.repeat(data.weight[doc], length)
    return out


def fill(data, order, L, budget):
    """Consecutive samples of `order` that fit into `budget` tokens, row by row."""
    total = np.concatenate(([0], np.cumsum(np.minimum(data.length[order], budget))))
    i, rows = 0, []
    while i < len(order):
        j = max(int(np.searchsorted(total, total[i] + budget, "right")) - 1, i + 1)
        rows.append(order[i:j])
        i = j
    return rows


def short_rows(data, L, rng):
    order = rng.permutation(data.of(FORWARD, THINK, TURNS, LONG, REVERSE, TALK))
    rows = [(r, -1) for r in fill(data, order, L, L)]
    return [rows[i] for i in rng.permutation(len(rows))]


def long_rows(data, L, rng):
    tools = data.of(TOOL)
    rows = []
    for k, prefix in enumerate(data.prefixes):
        mine = rng.permutation(tools[data.prefix[tools] == k])
        rows += [(r, prefix) for r in fill(data, mine, L, L - int(data.length[prefix]))]
    rows += [(r, -1) for r in fill(data, rng.permutation(data.of(PROSE)), L, L)]
    return [rows[i] for i in rng.permutation(len(rows))]


def stream(data, make, B, L, seed, depth=48):
    """Endless batches of B rows, made ahead of use; pinned for the copy to the device."""
    q = queue.Queue(depth)

    def work():
        rng = np.random.default_rng(seed)
        left = []
        while True:
            while len(left) < B:
                left += make(data, L, rng)
            batch, left[:] = left[:B], left[B:]
            out = {k: torch.from_numpy(v) for k, v in lay_out(data, batch, L).items()}
            q.put({k: v.pin_memory() for k, v in out.items()} if torch.cuda.is_available() else out)

    threading.Thread(target=work, daemon=True).start()
    while True:
        yield q.get()


def to_device(batch, device):
    b = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    b["tokens"], b["pos"] = b["tokens"].long(), b["pos"].long()
    doc, w = b["doc"], b["weight"]

    def ahead(n):  # weight and target of the token n places on, inside the same document
        same = torch.zeros_like(doc, dtype=torch.bool)
        same[:, :-n] = (doc[:, n:] == doc[:, :-n]) & (doc[:, n:] > 0)
        return torch.roll(b["tokens"], -n, 1), torch.roll(w, -n, 1) * same

    b["target"], b["weight1"] = ahead(1)
    b["target2"], b["weight2"] = ahead(2)
    b["valid"] = doc > 0
    return b
