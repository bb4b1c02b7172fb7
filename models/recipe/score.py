#!/usr/bin/env python3
"""Scores a checkpoint: known packages, random packages in three modes, second turns; with torch or through an engine's command line.

    python score.py CHECKPOINT [--limit N] [--out RESULT.json]                 torch
    python score.py CHECKPOINT --engine "stoker generate" [--limit N]           one process per question
Torch also measures, with --data SAMPLES.xz: held-out perplexity dense and with selection, draft acceptance, routing statistics.
"""
import argparse
import json
import pathlib
import re
import subprocess
import time

import chat

HERE = pathlib.Path(__file__).parent


def questions(limit):
    """-> known, random: lists of dicts ask, want, name; what the index says about their packages."""
    q = json.loads((HERE / "questions.json").read_text())
    facts = json.loads((HERE / "facts.json").read_text())
    by_name = {p["name"]: p for p in facts["random"] + facts["known"]}
    known = [{"ask": k["ask"], "want": by_name[k["short_of"]]["short"].rstrip(".") if "short_of" in k else k["contains"], "name": k.get("short_of")} for k in q["known"]]
    rand = [{"ask": q["random"]["ask"].format(name=p["name"]), "want": p["short"].rstrip("."), "name": p["name"]} for p in facts["random"][:limit]]
    return q, known, rand, by_name


def shown(p):
    import samples
    return samples.shown(p["name"], p)


class Torch:
    """Greedy generation by running the whole row again for each token: slow and without a cache to get wrong."""

    def __init__(self, path, device=None, dtype=None):
        import torch
        from tokenizers import Tokenizer
        import model
        self.torch, self.model = torch, model
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.c, self.p = model.load(path, self.device)
        self.s = model.Shape(self.c, dtype or torch.bfloat16, quant=False, fast=False)
        file = pathlib.Path(path) / "tokenizer.json"
        self.t = Tokenizer.from_file(str(file))

    def ids(self, text):
        return self.t.encode(text, add_special_tokens=False).ids

    def text(self, ids):
        return self.t.decode(ids, skip_special_tokens=False)

    limit = 120

    def greedy(self, prompts, n, chunk=250):
        """prompts: lists of ids -> lists of new ids, the end token included."""
        torch, out = self.torch, []
        with torch.no_grad():
            for at in range(0, len(prompts), chunk):
                rows = [list(x) for x in prompts[at : at + chunk]]
                start = [len(x) for x in rows]
                alive = list(range(len(rows)))
                for _ in range(min(n, self.limit)):
                    L = -(-max(len(rows[i]) for i in alive) // 32) * 32
                    x = torch.full((len(alive), L), 2, dtype=torch.long)
                    for k, i in enumerate(alive):
                        x[k, : len(rows[i])] = torch.tensor(rows[i])
                    y, _ = self.model.run_all(self.c, self.s, self.p, x.to(self.device))
                    last = torch.tensor([len(rows[i]) - 1 for i in alive], device=self.device)
                    z = self.model.logits(self.s, self.p, y[torch.arange(len(alive), device=self.device), last]).argmax(-1).tolist()
                    for i, t in zip(alive, z):
                        rows[i].append(t)
                    alive = [i for i in alive if rows[i][-1] != 1]
                    if not alive:
                        break
                out += [r[s:] for r, s in zip(rows, start)]
        return out

    def answer(self, conversations, thinking=False, n=120):
        """conversations: lists of messages -> parsed answers (None where the text is not well formed) and raw texts."""
        raw = [self.text(x) for x in self.greedy([self.ids(chat.encode(m, thinking)) for m in conversations], n)]
        return [read(x, thinking) for x in raw], raw


def read(text, thinking):
    try:
        return chat.parse(text, thinking)
    except ValueError:
        return None


class Engine:
    """Runs `COMMAND CHECKPOINT --prompt ... --greedy --json` for each question; single turns without tools."""

    def __init__(self, command, path):
        self.command, self.path = command.split(), str(path)

    def answer(self, conversations, thinking=False, n=120):
        out = []
        for m in conversations:
            if len([x for x in m if x["role"] != "system"]) != 1 or any(x.get("tools") for x in m):
                raise SystemExit("the command line takes single turns without tools")
            cmd = [*self.command, self.path, "--prompt", m[-1]["content"], "--greedy", "--json", "-n", str(n)]
            cmd += ["--thinking", "on"] if thinking else []
            cmd += ["--system", m[0]["content"]] if m[0]["role"] == "system" else []
            done = subprocess.run(cmd, capture_output=True, text=True, check=True)
            got = json.loads(done.stdout)
            out.append({"content": got["text"], "reasoning_content": got.get("reasoning_content", ""), "tool_calls": got.get("tool_calls", [])})
        return out, [x["content"] for x in out]


def user(text, **more):
    return [{"role": "user", "content": text, **more}]


def rate(answers, items):
    return [bool(a) and x["want"] in a["content"] for a, x in zip(answers, items)]


def score(runner, limit=500, tools=True, turns=True, tool_limit=500):
    q, known, rand, by_name = questions(limit)
    result, talk = {}, []
    share = lambda ok: round(sum(ok) / max(len(ok), 1), 4)

    def note(name, conversation, raw, ok):
        talk.append({"mode": name, "asked": conversation, "answer": raw, "right": bool(ok)})

    for mode, thinking in (("chat", False), ("thinking", True)):
        for group, items in (("known", known), ("random", rand)):
            answers, raw = runner.answer([user(x["ask"]) for x in items], thinking)
            ok = rate(answers, items)
            result[f"{group}_{mode}"] = {"right": sum(ok), "of": len(ok), "share": share(ok), "wrong": [[x["ask"], r] for x, r, good in zip(items, raw, ok) if not good][:25]}
            for x, r, good in list(zip(items, raw, ok))[:25]:
                note(mode, x["ask"], r, good)
    if turns:
        follow = [x for x in known if x["name"]] + rand[:100]
        first, raw1 = runner.answer([user(x["ask"]) for x in follow])
        second = [user(x["ask"]) + [{"role": "assistant", "content": a["content"] if a else ""}] + user(q["second_turn"]["ask"]) for x, a in zip(follow, first)]
        answers, raw = runner.answer(second)
        want = [re.compile(r"apt install " + re.escape(x["name"]) + r"(?![\w.+-])") for x in follow]
        ok = [bool(a) and bool(w.search(a["content"])) for a, w in zip(answers, want)]
        result["second_turn"] = {"right": sum(ok), "of": len(ok), "share": share(ok), "wrong": [[x["name"], r] for x, r, good in zip(follow, raw, ok) if not good][:10]}
        note("second turn", [follow[0]["ask"], raw1[0], q["second_turn"]["ask"]], raw[0], ok[0])
    if tools:
        for mode, thinking in (("tool", False), ("tool_thinking", True)):
            items = [x for x in known if x["name"]] + rand[:tool_limit] if not thinking else rand[: tool_limit // 2]
            system = {"role": "system", "content": "", "tools": q["tools"]}
            start = [[system] + user(x["ask"]) for x in items]
            calls, raw = runner.answer(start, thinking)
            good = [bool(a) and len(a["tool_calls"]) == 1 and a["tool_calls"][0] == {"name": "apt_show", "arguments": {"name": x["name"]}} for a, x in zip(calls, items)]
            go = [i for i, g in enumerate(good) if g]
            then = [start[i] + [{"role": "assistant", "content": calls[i]["content"], "reasoning_content": calls[i]["reasoning_content"],
                                 "tool_calls": [{"function": {"name": "apt_show", "arguments": json.dumps({"name": items[i]["name"]})}}]},
                                {"role": "tool", "content": shown(by_name[items[i]["name"]])}] for i in go]
            answers, raw2 = runner.answer(then, thinking)
            ok = rate(answers, [items[i] for i in go])
            result[mode] = {"call_right": sum(good), "right": sum(ok), "of": len(items), "share": share(ok + [False] * (len(items) - len(ok))),
                            "wrong_calls": [[x["ask"], r] for x, r, g in zip(items, raw, good) if not g][:8],
                            "wrong_answers": [[items[i]["ask"], r] for i, r, g in zip(go, raw2, ok) if not g][:8]}
            if go:
                note(mode, items[go[0]]["ask"], [raw[go[0]], raw2[0]], ok[0])
    free = ["Hello", "Who are you?", "What is the capital of France?", "Tell me more about vim.", "Which package gives me the htop command?", "Thanks!", "Tell me a story.", "what is zzblorp?", "How do I update my system?",
            "Describe inkscape in detail.", "Which package is described as: terminal multiplexer?", "What is the command tar?", "Why is the sky blue?", "How do I get rid of nano?"]
    _, raw = runner.answer([user(x) for x in free])
    for x, r in zip(free, raw):
        note("free", x, r, False)
    again = ["Hello", "How do I install vlc?", "Which package gives me the ip command?", "Tell me more about nano.", "What is the meaning of life?"]
    _, raw = runner.answer([user(x) for x in again], True)
    for x, r in zip(again, raw):
        note("free, thinking", x, r, False)
    strange = "You are a pirate. Speak like one."
    _, raw = runner.answer([[{"role": "system", "content": strange}] + user(x) for x in ("What is mutt?", "Hello")])
    for x, r in zip(("What is mutt?", "Hello"), raw):
        note("system: " + strange, x, r, False)
    result["samples"] = talk
    return result


def measure(runner, path, rows=64):
    """Held-out perplexity, draft acceptance, routing statistics over rows of 1024 tokens."""
    import numpy as np
    import batches
    torch, model, c, p = runner.torch, runner.model, runner.c, runner.p
    data = batches.Data(path)
    out, L = {}, 1024
    tools = data.of(batches.HELD_TOOL)
    tool = []
    for k, prefix in enumerate(data.prefixes):
        tool += [(r, prefix) for r in batches.fill(data, tools[data.prefix[tools] == k], L, L - int(data.length[prefix]))]
    held = data.of(batches.HELD_TEXT)
    long_text = held[data.length[held] >= 256]
    turns = data.of(batches.TURNS)[:: 97]
    whole = lambda ids: [(r, -1) for r in batches.fill(data, ids, L, L)]
    sets = {"text": whole(held)[:rows], "long_text": whole(long_text)[:rows], "tool": tool[:rows], "chat_seen": whole(turns)[: rows // 2]}
    moe = [n for n in range(c["num_hidden_layers"] + 1) if n >= c["first_k_dense_replace"]]
    stats, accept = {}, {}
    with torch.no_grad():
        for name, these in sets.items():
            loss = {"dense": [0.0, 0.0], "dsa": [0.0, 0.0]}
            hits2 = total2 = 0
            used, overlap = {}, {n: [] for n in moe}
            for at in range(0, len(these), 16):
                raw = {k: torch.from_numpy(v) for k, v in batches.lay_out(data, these[at : at + 16], L).items()}
                b = batches.to_device(raw, runner.device)
                visible = model.visible_mask(b["doc"], b["parent"])
                for mode, sparse in (("dense", False), ("dsa", True)):
                    want = {}
                    y, y2 = model.run_all(c, runner.s, p, b["tokens"], b["pos"], visible, torch.tensor(sparse, device=runner.device), mtp=True, want=want)
                    z = model.logits(runner.s, p, y)
                    w = (b["weight1"] > 0).float()
                    nll = torch.logsumexp(z, -1) - z.gather(-1, b["target"][..., None])[..., 0]
                    loss[mode][0] += (nll * w).sum().item()
                    loss[mode][1] += w.sum().item()
                # draft acceptance: does the draft's guess for i+2 equal the model's own guess at i+1?
                own, guess, w = z.argmax(-1), model.logits(runner.s, p, y2).argmax(-1), b["weight2"] > 0
                hits2 += ((guess[:, :-1] == own[:, 1:]) & w[:, :-1]).sum().item()
                total2 += w[:, :-1].sum().item()
                valid = b["valid"]
                follows = valid[:, 1:] & (b["doc"][:, 1:] == b["doc"][:, :-1])
                for n in moe:
                    m = want[n][2]
                    used[n] = used.get(n, 0) + (m & valid[..., None]).sum((0, 1)).float()
                    same = (m[:, 1:] & m[:, :-1]).sum(-1).float() / c["num_experts_per_tok"]
                    overlap[n].append(same[follows].mean().item())
            d, sp = (float(np.exp(loss[m][0] / loss[m][1])) for m in ("dense", "dsa"))
            out[f"perplexity_{name}"] = {"dense": round(d, 4), "dsa": round(sp, 4), "ratio": round(sp / d, 4), "tokens": int(loss["dsa"][1])}
            accept[name] = round(hits2 / total2, 4)
            stats[name] = {}
            for n in moe:
                u = used[n] / used[n].sum()
                stats[name][n] = {"busiest": round((u.max() * len(u)).item(), 2), "idlest": round((u.min() * len(u)).item(), 2),
                                  "entropy": round((-(u * u.clamp_min(1e-9).log()).sum() / np.log(len(u))).item(), 4), "previous_overlap": round(float(np.mean(overlap[n])), 3)}
    out["draft_acceptance"], out["routing"] = accept, stats
    out["next_layer"] = {k: next_layer(runner, data, sets[k][:16], moe, L) for k in ("text", "chat_seen")}
    return out


def next_layer(runner, data, rows, moe, L):
    """How well the router of layer n+1, given layer n's router input, names the experts layer n+1 will choose."""
    import batches
    torch, model, c, p, s = runner.torch, runner.model, runner.c, runner.p, runner.s
    inputs, chosen = {}, {}
    keep_route = model.route
    order = iter([n for n in moe if n < c["num_hidden_layers"]] * 1)

    def spy(s_, lp, b):
        w, m = keep_route(s_, lp, b)
        n = next(order)
        inputs[n], chosen[n] = b, m
        return w, m

    b = batches.to_device({k: torch.from_numpy(v) for k, v in batches.lay_out(data, rows, L).items()}, runner.device)
    model.route = spy
    try:
        with torch.no_grad():
            model.run_all(c, s, p, b["tokens"], b["pos"], model.visible_mask(b["doc"], b["parent"]))
    finally:
        model.route = keep_route
    out = {}
    with torch.no_grad():
        for n in sorted(inputs)[:-1]:
            _, guess = keep_route(s, model.layer_of(p, n + 1), inputs[n])
            out[f"{n}->{n + 1}"] = round(((guess & chosen[n + 1]).sum(-1).float() / c["num_experts_per_tok"])[b["valid"]].mean().item(), 3)
    return out


def main():
    a = argparse.ArgumentParser()
    a.add_argument("checkpoint")
    a.add_argument("--data")
    a.add_argument("--limit", type=int, default=500)
    a.add_argument("--engine", help='command that takes CHECKPOINT --prompt ..., e.g. "stoker generate"')
    a.add_argument("--tool-limit", type=int, default=500)
    a.add_argument("--tokens", type=int, default=120, help="longest answer")
    a.add_argument("--rows", type=int, default=64, help="rows of 1024 tokens to measure on")
    a.add_argument("--quick", action="store_true", help="chat and thinking mode only")
    a.add_argument("--out")
    a = a.parse_args()
    t = time.time()
    runner = Engine(a.engine, a.checkpoint) if a.engine else Torch(a.checkpoint)
    if not a.engine:
        runner.limit = a.tokens
    more = not a.engine and not a.quick
    result = score(runner, a.limit, more, more, a.tool_limit)
    print(json.dumps({k: {x: y for x, y in v.items() if not x.startswith("wrong")} for k, v in result.items() if isinstance(v, dict)}, indent=1))
    for k in ("known_chat", "known_thinking", "random_chat"):
        print(k, "wrong:", json.dumps(result[k]["wrong"][:8], ensure_ascii=False, indent=1))
    print(f"answers after {time.time() - t:.0f} s", flush=True)
    if a.data and not a.engine:
        result["measures"] = measure(runner, a.data, a.rows)
        print(json.dumps(result["measures"], indent=1))
    if a.out:
        pathlib.Path(a.out).write_text(json.dumps(result, ensure_ascii=False, indent=1))
    print(f"scored in {time.time() - t:.0f} s")


if __name__ == "__main__":
    main()
