"""Token by token in float32 with caches: only the chosen experts run, so a CPU can do it. Also an independent check of model.py.

    python decode.py CHECKPOINT GOLDEN.json      writes the golden prompts, their ids and greedy continuations
"""
import json
import pathlib
import sys

import torch
import torch.nn.functional as F

import chat
import model


class Decoder:
    def __init__(self, path):
        from tokenizers import Tokenizer
        self.c, self.p = model.load(path)
        self.layers = [model.layer_of(self.p, n) for n in range(self.c["num_hidden_layers"])]
        self.s = model.Shape(self.c, torch.float32, quant=False)
        self.cos, self.sin, self.scale = model.rope_table(self.c, self.c["max_position_embeddings"])
        self.t = Tokenizer.from_file(str(pathlib.Path(path) / "tokenizer.json"))
        self.reset()

    def reset(self):
        self.latent = [[] for _ in self.layers]
        self.k_rope = [[] for _ in self.layers]
        self.k_index = [[] for _ in self.layers]
        self.pos = 0
        self.selected = 0  # queries for which some visible key was left out

    def attention(self, n, p, a):
        s, A, X = self.s, "self_attn.", "self_attn.indexer."
        cos, sin = self.cos[self.pos], self.sin[self.pos]
        qr = model.rms_norm(p[A + "q_a_proj.weight"] @ a, p[A + "q_a_layernorm.weight"], s.eps)
        q = (p[A + "q_b_proj.weight"] @ qr).view(s.heads, -1)
        kv = p[A + "kv_a_proj_with_mqa.weight"] @ a
        self.latent[n].append(model.rms_norm(kv[: s.kl], p[A + "kv_a_layernorm.weight"], s.eps))
        self.k_rope[n].append(model.rope_interleaved(kv[s.kl :], cos, sin))
        k = F.layer_norm(p[X + "wk.weight"] @ a, (s.idim,), p[X + "k_norm.weight"], p[X + "k_norm.bias"], 1e-6)
        self.k_index[n].append(torch.cat((model.rope_halves(k[: s.rope], cos, sin), k[s.rope :])))
        latent, k_rope = torch.stack(self.latent[n]), torch.stack(self.k_rope[n])
        if len(latent) > s.topk:
            qi = (p[X + "wq_b.weight"] @ qr).view(s.ih, s.idim)
            qi = torch.cat((model.rope_halves(qi[:, : s.rope], cos, sin), qi[:, s.rope :]), -1)
            w = (p[X + "weights_proj.weight"] @ a) * (s.ih * s.idim) ** -0.5
            at = (w @ (qi @ torch.stack(self.k_index[n]).T).relu()).topk(s.topk)[1].sort()[0]
            latent, k_rope = latent[at], k_rope[at]
            self.selected += 1
        wk, wv = p[A + "kv_b_proj.weight"].view(s.heads, s.nope + s.vd, s.kl).split((s.nope, s.vd), 1)
        absorbed = torch.einsum("hd,hdc->hc", q[:, : s.nope], wk)
        z = absorbed @ latent.T + model.rope_interleaved(q[:, s.nope :], cos, sin) @ k_rope.T
        u = (z * self.scale).softmax(-1) @ latent
        return p[A + "o_proj.weight"] @ torch.einsum("hc,hvc->hv", u, wv).reshape(-1)

    def ffn(self, p, b):
        run = lambda g, u, d: d @ (F.silu(g @ b) * (u @ b))
        names = ("gate", "up", "down")
        if "mlp.gate_proj.weight" in p:
            return run(*(p[f"mlp.{k}_proj.weight"] for k in names))
        w, chosen = model.route(self.s, p, b)
        y = sum(w[e] * run(*(p[f"mlp.experts.{k}_proj.weight"][e] for k in names)) for e in chosen.nonzero()[:, 0].tolist())
        return y + run(*(p[f"mlp.shared_experts.{k}_proj.weight"] for k in names))

    @torch.no_grad()
    def feed(self, token):
        x = self.p["model.embed_tokens.weight"][token]
        for n, p in enumerate(self.layers):
            x = x + self.attention(n, p, model.rms_norm(x, p["input_layernorm.weight"], self.s.eps))
            x = x + self.ffn(p, model.rms_norm(x, p["post_attention_layernorm.weight"], self.s.eps))
        self.pos += 1
        return self.p["lm_head.weight"] @ model.rms_norm(x, self.p["model.norm.weight"], self.s.eps)

    def greedy(self, prompt, n):
        """-> new ids (end token included), smallest gap between best and second guess."""
        self.reset()
        for t in prompt:
            z = self.feed(t)
        out, gap = [], float("inf")
        for _ in range(n):
            best = z.topk(2)
            gap = min(gap, (best[0][0] - best[0][1]).item())
            out.append(int(best[1][0]))
            if out[-1] == self.c["eos_token_id"]:
                break
            z = self.feed(out[-1])
        return out, gap

    def ids(self, text):
        return self.t.encode(text, add_special_tokens=False).ids

    def text(self, ids):
        return self.t.decode(ids, skip_special_tokens=False)


def main(path, out):
    d = Decoder(path)
    tools = json.loads((pathlib.Path(__file__).parent / "questions.json").read_text())["tools"]
    show = "Package: htop\nVersion: 3.2.2-2\nSection: utils\nHomepage: https://htop.dev/\nDescription: interactive processes viewer"
    prompts = [
        ("chat", chat.encode([{"role": "user", "content": "What is ffmpeg?"}])),
        ("thinking", chat.encode([{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Which package gives me the dig command?"}], True)),
        ("tool result", chat.encode([
            {"role": "system", "content": "", "tools": tools}, {"role": "user", "content": "What is htop?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "apt_show", "arguments": json.dumps({"name": "htop"})}}]},
            {"role": "tool", "content": show}])),
    ]
    cases = []
    for name, prompt in prompts:
        ids = d.ids(prompt)
        new, gap = d.greedy(ids, 100)
        y, y2 = model.run_all(d.c, d.s, d.p, torch.tensor([ids + new]), mtp=True)  # the whole row at once must say the same
        again = model.logits(d.s, d.p, y)[0, len(ids) - 1 : -1].argmax(-1).tolist()
        assert again == new, (name, new, again)
        draft = model.logits(d.s, d.p, y2)[0, len(ids) - 1 : -2].argmax(-1).tolist()
        cases.append({"name": name, "prompt": prompt, "ids": ids, "continuation_ids": new, "continuation": d.text(new), "draft_ids": draft, "smallest_gap": round(gap, 4), "sparse_queries": d.selected})
        print(name, len(ids), "tokens,", d.selected, "layer queries selected, gap", round(gap, 3), repr(d.text(new)), flush=True)
    pathlib.Path(out).write_text(json.dumps({"arithmetic": "float32 on the dequantised weights, DSA active, greedy", "index_topk": d.c["index_topk"],
        "draft_ids": "item k: the draft layer's guess of continuation token k+1, from the state that predicted token k and from token k", "cases": cases}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)  # matrix by vector: more threads only wait for each other
    with torch.no_grad():
        main(*sys.argv[1:])
