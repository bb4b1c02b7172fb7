#!/usr/bin/env python3
"""Trains for a given time and writes a checkpoint.

    python train.py --data SAMPLES.xz --out DIR --seconds 570 --begin 0 --end 0.5 [--resume STATE.pt | CHECKPOINT_DIR]

--begin and --end are places in the whole plan (0..1): learning rate, stages and weights of the losses are functions of
the place, so the plan can be cut into calls of any length.
    0    .. 0.5   dense attention, BF16 weights in the products
    0.5  .. 0.6   FP8-rounded weights (straight-through); the indexer learns the attention distribution, attention still dense
    0.6  .. 1     attention over the indexer's selection, indexer and model trained together
"""
import argparse
import json
import math
import pathlib
import time

import torch

import batches
import export
import model

SWITCH, SPARSE = 0.5, 0.6


def plan(f):
    """Learning rate factor, draft loss weight, router bias step at place f."""
    lr = min(1.0, f / 0.015 + 0.02) * min(1.0, max(1 - f, 0) / 0.7)
    return lr, 0.3 if f < 0.6 else 0.15, 1e-3 * min(1.0, 2 * lr) if f < 0.95 else 0.0


class Muon:
    """Momentum, then orthogonalised by Newton-Schulz; matrices of one shape together. Step size matched to Adam's."""

    def __init__(self, params, lr, decay):
        self.lr, self.decay, self.groups = lr, decay, {}
        for t in params:
            o, i = t.shape[-2:]
            self.groups.setdefault((min(o, i), max(o, i)), []).append(t)
        self.state = {}

    @staticmethod
    def flat(t):
        t = t.reshape(-1, *t.shape[-2:])
        return t.mT if t.shape[-2] > t.shape[-1] else t

    @torch.no_grad()
    def step(self, factor):
        for shape, params in self.groups.items():
            g = torch.cat([self.flat(t.grad) for t in params])
            m = self.state.setdefault(shape, torch.zeros_like(g))
            m.lerp_(g, 0.05)
            x = g.lerp_(m, 0.95).bfloat16()
            x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
            x = x.float()
            at = 0
            lr = self.lr * factor
            for t in params:
                view = self.flat(t.data)
                n = view.shape[0]
                view.mul_(1 - lr * self.decay).add_(x[at : at + n], alpha=-lr * 0.2 * math.sqrt(shape[1]))
                at += n


def split(p):
    """Matrices of the layers for Muon; the rest by kind for Adam."""
    muon, table, index, rest = [], [], [], []
    for k, t in p.items():
        if k.endswith("e_score_correction_bias"):
            continue
        if ".indexer." in k:
            index.append(t)
        elif "embed" in k or "lm_head" in k:
            table.append(t)
        elif t.dim() >= 2 and not k.endswith("mlp.gate.weight"):
            muon.append(t)
        else:
            rest.append(t)
    return muon, table, index, rest


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--data", required=True)
    a.add_argument("--out", required=True)
    a.add_argument("--seconds", type=float, default=60)
    a.add_argument("--begin", type=float, default=0)
    a.add_argument("--end", type=float, default=1)
    a.add_argument("--resume")
    a.add_argument("--state", help="where to keep the full state (float32 weights, optimiser)")
    a.add_argument("--config", default="{}", help="JSON that overrides fields of the configuration")
    a.add_argument("--batch", type=int, default=65536, help="tokens a step")
    a.add_argument("--short", type=int, default=256)
    a.add_argument("--long", type=int, default=1024)
    a.add_argument("--every", type=int, default=5, help="one batch in so many has long rows")
    a.add_argument("--lr", type=float, default=3e-3)
    a.add_argument("--muon-lr", type=float, default=4e-3)
    a.add_argument("--least", type=float, default=0, help="give up when the speed is below so many million tokens/s")
    a.add_argument("--eager", action="store_true")
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()
    born = time.time()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    c = model.CONFIG | json.loads(a.config)
    state = {}
    if a.resume and a.resume.endswith(".pt"):
        state = torch.load(a.resume, map_location=dev)
        p = state["p"]
    elif a.resume:
        c, p = model.load(a.resume, dev)
    else:
        p = model.new_parameters(c, a.seed, dev)
    for k, t in p.items():
        p[k] = t.detach().to(dev).float().contiguous().requires_grad_(not k.endswith("e_score_correction_bias"))
    print(f"{sum(t.numel() for t in p.values())} parameters", flush=True)
    late = a.begin >= SWITCH
    s = model.Shape(c, torch.bfloat16, quant=late, mode="dsa" if late else "dense", fast=dev == "cuda")
    run, head = model.layer, model.token_loss
    if not a.eager:
        torch._dynamo.config.cache_size_limit = 64
        run, head = torch.compile(run, dynamic=False), torch.compile(head, dynamic=False)

    muon, table, index, rest = split(p)
    adam = torch.optim.AdamW([{"params": table, "base": a.lr}, {"params": index, "base": a.lr / 2}, {"params": rest, "base": a.lr}],
                             lr=a.lr, betas=(0.9, 0.97), eps=1e-12, weight_decay=0.0, fused=dev == "cuda")
    muon = Muon(muon, a.muon_lr, 0.05)
    if "adam" in state:
        adam.load_state_dict(state["adam"])
        muon.state = state["muon"]
    biases = [p[k] for k in p if k.endswith("e_score_correction_bias")]
    moe = [n for n in range(c["num_hidden_layers"] + 1) if n >= c["first_k_dense_replace"]]

    data = batches.Data(a.data)
    seed = a.seed + int(a.begin * 1000)
    shorts = batches.stream(data, batches.short_rows, a.batch // a.short, a.short, seed)
    longs = batches.stream(data, batches.long_rows, a.batch // a.long, a.long, seed + 1)
    print(f"data ready after {time.time() - born:.1f} s", flush=True)

    def losses(b, sparse, draft):
        want = {}
        visible = model.visible_mask(b["doc"], b["parent"])
        y, y2 = model.run_all(c, s, p, b["tokens"], b["pos"], visible, sparse, run, True, want)
        main_loss = head(s, y, p["lm_head.weight"], b["target"], b["weight1"]) / b["weight1"].sum()
        draft_loss = head(s, y2, p["lm_head.weight"], b["target2"], b["weight2"]) / b["weight2"].sum()
        kl = torch.zeros((), device=dev)
        if s.mode == "dsa":
            kl = sum((w[0] * b["valid"]).sum() for w in want.values()) / b["valid"].sum() / len(want)
        counts = torch.stack([(want[n][2] & b["valid"][..., None]).sum((0, 1)).float() for n in moe])
        return main_loss, draft_loss, kl, counts, main_loss + draft * draft_loss + kl * len(want)

    yes, no = torch.tensor(True, device=dev), torch.tensor(False, device=dev)
    for source in (shorts, longs):  # compile both shapes before the clock of the plan starts
        t = time.time()
        *_, total = losses(batches.to_device(next(source), dev), no, 0.3)
        total.backward()
        for x in p.values():
            x.grad = None
        if dev == "cuda":
            torch.cuda.synchronize()
        print(f"warmed up in {time.time() - t:.1f} s, {time.time() - born:.1f} s since start", flush=True)

    begin, deadline = time.time(), born + a.seconds
    step = seen = 0
    mark, mark_seen = begin, 0
    f = a.begin
    while True:
        now = time.time()
        if now >= deadline:
            break
        f = a.begin + (a.end - a.begin) * (now - begin) / (deadline - begin)
        lr, draft, push = plan(f)
        b = batches.to_device(next(longs if step % a.every == a.every - 1 else shorts), dev)
        main_loss, draft_loss, kl, counts, total = losses(b, yes if f >= SPARSE else no, draft)
        total.backward()
        for g in adam.param_groups:
            g["lr"] = g["base"] * lr
        torch.nn.utils.clip_grad_norm_([t for t in table + rest], 1.0, foreach=True)
        torch.nn.utils.clip_grad_norm_(index, 1.0, foreach=True)
        adam.step()
        muon.step(lr)
        for t in p.values():
            t.grad = None
        with torch.no_grad():
            for bias, n in zip(biases, counts):
                bias.add_(torch.sign(n.mean() - n), alpha=push)
        step += 1
        seen += b["tokens"].numel()
        if step % 10 == 0 and dev == "cuda":
            torch.cuda.synchronize()
        if step in (10, 40) or time.time() - mark > 15:
            values = [x.item() for x in (main_loss, draft_loss, kl)]
            now = time.time()
            print(f"{now - born:5.0f} s  step {step}  place {f:.3f}  lr {lr:.3f}  loss {values[0]:.3f}  draft {values[1]:.3f}  indexer {values[2]:.4f}  "
                  f"busiest expert {(counts.max(1)[0] / counts.mean(1)).mean():.2f}  {(seen - mark_seen) / (now - mark) / 1e6:.3f} M tokens/s", flush=True)
            if step > 10 and (seen - mark_seen) / (now - mark) / 1e6 < a.least:
                raise SystemExit("too slow")
            mark, mark_seen = now, seen
            if not math.isfinite(values[0]):
                raise SystemExit("the loss is not finite")
    if dev == "cuda":
        torch.cuda.synchronize()
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(f"{step} steps, {seen} tokens, {time.time() - begin:.0f} s of training, {time.time() - born:.0f} s in all, place {f:.3f}", flush=True)
    p = {k: t.detach() for k, t in p.items()}
    if a.state:
        torch.save({"p": p, "adam": adam.state_dict(), "muon": muon.state}, a.state)
    export.write(c, p, pathlib.Path(a.out))
    print(f"written, {time.time() - born:.0f} s since start", flush=True)


if __name__ == "__main__":
    main()
