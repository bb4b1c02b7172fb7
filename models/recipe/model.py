"""The deepseek_v32 forward pass for training and for checking, small enough to read.

Parameters live in a flat dict under the published names (experts of a layer stacked: "mlp.experts.gate_proj.weight" is
[E, w, d]). A layer is a pure function of its dict, so one compiled function serves all layers of a kind.
All experts are computed for every token and the unchosen ones are weighted with zero: at this size that is the fastest
exact form (no capacity, nothing dropped).
"""
import functools
import json
import math
import pathlib

import torch
import torch.nn.functional as F

BLOCK = 128
NEG = -1e30

CONFIG = {
    "architectures": ["DeepseekV32ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 256, "index_head_dim": 128, "index_n_heads": 4, "index_topk": 64,
    "initializer_range": 0.02, "intermediate_size": 768, "kv_lora_rank": 512, "max_position_embeddings": 4096, "model_type": "deepseek_v32",
    "moe_intermediate_size": 48, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 64, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 2, "num_experts_per_tok": 6, "num_hidden_layers": 7, "num_key_value_heads": 2, "num_nextn_predict_layers": 1,
    "q_lora_rank": 192, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "transformers_version": "4.44.2", "use_cache": True, "v_head_dim": 128, "vocab_size": 6144,
}

FP8_NAMES = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "indexer.wq_b", "indexer.wk",
             "gate_proj", "up_proj", "down_proj")


def is_fp8(name):
    return name.endswith(tuple(x + ".weight" for x in FP8_NAMES))


def layer_shapes(c, n):
    """Name -> (shape, init std or a constant) of layer n; n = num_hidden_layers is the draft (MTP) layer."""
    d, heads, w, e = c["hidden_size"], c["num_attention_heads"], c["moe_intermediate_size"], c["n_routed_experts"]
    nope, rope, vd, ql, kl = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["q_lora_rank"], c["kv_lora_rank"]
    ih, idim, out = c["index_n_heads"], c["index_head_dim"], 1 / math.sqrt(2 * c["num_hidden_layers"])
    a, x = "self_attn.", "self_attn.indexer."
    s = {"input_layernorm.weight": ((d,), "one"), "post_attention_layernorm.weight": ((d,), "one"),
         a + "q_a_proj.weight": ((ql, d), d**-0.5), a + "q_a_layernorm.weight": ((ql,), "one"), a + "q_b_proj.weight": ((heads * (nope + rope), ql), 0.5 * ql**-0.5),
         a + "kv_a_proj_with_mqa.weight": ((kl + rope, d), d**-0.5), a + "kv_a_layernorm.weight": ((kl,), "one"),
         a + "kv_b_proj.weight": ((heads * (nope + vd), kl), kl**-0.5), a + "o_proj.weight": ((d, heads * vd), out * (heads * vd) ** -0.5)}
    if "index_topk" in c:
        s |= {x + "wq_b.weight": ((ih * idim, ql), ql**-0.5), x + "wk.weight": ((idim, d), d**-0.5), x + "k_norm.weight": ((idim,), "one"),
              x + "k_norm.bias": ((idim,), "zero"), x + "weights_proj.weight": ((ih, d), d**-0.5)}
    if n < c["first_k_dense_replace"]:
        i = c["intermediate_size"]
        s |= {"mlp.gate_proj.weight": ((i, d), d**-0.5), "mlp.up_proj.weight": ((i, d), d**-0.5), "mlp.down_proj.weight": ((d, i), out * i**-0.5)}
    else:
        s |= {"mlp.gate.weight": ((e, d), d**-0.5), "mlp.gate.e_score_correction_bias": ((e,), "zero")}
        for k, m in (("experts", (e, w)), ("shared_experts", (w * c["n_shared_experts"],))):
            s |= {f"mlp.{k}.gate_proj.weight": ((*m, d), d**-0.5), f"mlp.{k}.up_proj.weight": ((*m, d), d**-0.5),
                  f"mlp.{k}.down_proj.weight": ((*m[:-1], d, m[-1]), out * 2 * m[-1] ** -0.5 * (0.5 if k == "experts" else 1))}
    if n == c["num_hidden_layers"]:
        s |= {"enorm.weight": ((d,), "one"), "hnorm.weight": ((d,), "one"), "shared_head.norm.weight": ((d,), "one"), "eh_proj.weight": ((d, 2 * d), (2 * d) ** -0.5)}
    return s


def new_parameters(c, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": ((c["vocab_size"], c["hidden_size"]), 0.1), "model.norm.weight": ((c["hidden_size"],), "one"),
              "lm_head.weight": ((c["vocab_size"], c["hidden_size"]), 0.02)}
    for n in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        shapes |= {f"model.layers.{n}.{k}": v for k, v in layer_shapes(c, n).items()}
    p = {}
    for k, (shape, init) in shapes.items():
        t = torch.ones(shape) if init == "one" else torch.zeros(shape) if init == "zero" else torch.randn(shape, generator=g) * init
        p[k] = t.to(device)
    return p


def layer_of(p, n):
    head = f"model.layers.{n}."
    return {k[len(head):]: v for k, v in p.items() if k.startswith(head)}


def block_scales(w):
    """Power-of-two scale of each 128 x 128 block of [..., o, i] -> [..., ceil(o/128), ceil(i/128)]."""
    o, i = w.shape[-2:]
    w = F.pad(w, (0, -i % BLOCK, 0, -o % BLOCK))
    w = w.reshape(*w.shape[:-2], w.shape[-2] // BLOCK, BLOCK, w.shape[-1] // BLOCK, BLOCK)
    amax = w.abs().amax(dim=(-3, -1)).clamp_min(1e-4)
    return torch.exp2(torch.ceil(torch.log2(amax / 448.0)))


def spread(scale, o, i):
    return scale.repeat_interleave(BLOCK, -2)[..., :o, :].repeat_interleave(BLOCK, -1)[..., :i]


def rounded(w):
    """w as FP8 E4M3 with block scales would store it; the gradient passes through."""
    with torch.no_grad():
        s = spread(block_scales(w), *w.shape[-2:])
        q = (w / s).clamp(-448, 448).to(torch.float8_e4m3fn).float() * s
    return w + (q - w).detach()


def rms_norm(x, w, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


@functools.lru_cache
def tables(text, device):
    c = json.loads(text)
    return rope_table(c, c["max_position_embeddings"], device)


def rope_at(c, pos):
    cos, sin, _ = tables(json.dumps({k: c.get(k) for k in ("qk_rope_head_dim", "rope_scaling", "rope_theta", "qk_nope_head_dim", "max_position_embeddings")}), pos.device)
    return cos[pos], sin[pos]


def rope_table(c, length, device="cpu"):
    """cos, sin [length, rope/2] with YaRN, and the softmax scale."""
    dim, s = c["qk_rope_head_dim"], c.get("rope_scaling")
    i = torch.arange(0, dim, 2, dtype=torch.float64)
    f = c["rope_theta"] ** (-i / dim)
    scale = (c["qk_nope_head_dim"] + dim) ** -0.5
    if s and s["type"] == "yarn":
        at = lambda r: dim * math.log(s["original_max_position_embeddings"] / (2 * math.pi * r)) / (2 * math.log(c["rope_theta"]))
        low, high = max(math.floor(at(s["beta_fast"])), 0), min(math.ceil(at(s["beta_slow"])), dim - 1)
        ramp = ((i / 2 - low) / max(high - low, 1e-3)).clamp(0, 1)
        f = f / s["factor"] * ramp + f * (1 - ramp)
        scale *= (0.1 * s["mscale_all_dim"] * math.log(s["factor"]) + 1) ** 2
    angle = torch.outer(torch.arange(length, dtype=torch.float32), f.float())
    return angle.cos().to(device), angle.sin().to(device), scale


def rope_interleaved(x, cos, sin):
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def rope_halves(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)


class Shape:
    """What a layer function needs to know beside tensors. mode: "dense", or "dsa"; quant: weights as FP8 would store them."""

    def __init__(self, c, dtype=torch.bfloat16, quant=True, mode="dsa", fast=False):
        self.dtype, self.quant, self.mode, self.fast = dtype, quant, mode, fast
        self.eps, self.heads, self.nope, self.rope, self.vd, self.kl = c["rms_norm_eps"], c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        self.ih, self.idim, self.topk = c.get("index_n_heads"), c.get("index_head_dim"), c.get("index_topk")
        self.groups, self.keep_groups, self.experts_per_token = c["n_group"], c["topk_group"], c["num_experts_per_tok"]
        self.normalise, self.routed_scale = c["norm_topk_prob"], c["routed_scaling_factor"]
        self.scale = rope_table(c, 1)[2]

    def weight(self, w):
        return (rounded(w) if self.quant else w).to(self.dtype)


def index_scores(s, p, a, qr, cos, sin, visible):
    """The indexer's score of every key for every query, [B, L, L] float32."""
    x = "self_attn.indexer."
    B, L, _ = a.shape
    q = F.linear(qr, s.weight(p[x + "wq_b.weight"])).view(B, L, s.ih, s.idim)
    k = F.layer_norm(F.linear(a, s.weight(p[x + "wk.weight"])).float(), (s.idim,), p[x + "k_norm.weight"], p[x + "k_norm.bias"], 1e-6).to(s.dtype)
    q = torch.cat((rope_halves(q[..., : s.rope], cos[:, :, None], sin[:, :, None]), q[..., s.rope :]), -1)
    k = torch.cat((rope_halves(k[..., : s.rope], cos, sin), k[..., s.rope :]), -1)
    w = F.linear(a.float(), p[x + "weights_proj.weight"].to(s.dtype).float()) * (s.ih * s.idim) ** -0.5
    dots = torch.matmul(q.transpose(1, 2), k[:, None].transpose(-1, -2))  # [B, ih, L, L]
    score = (dots.float().relu() * w.transpose(1, 2)[..., None]).sum(1)
    return score.masked_fill(~visible, NEG)


def attention(s, p, a, cos, sin, visible, sparse):
    """-> output, indexer loss per query, selection. visible [B, L, L]; sparse: 0-d bool, whether the selection is applied."""
    B, L, _ = a.shape
    A = "self_attn."
    qr = rms_norm(F.linear(a, s.weight(p[A + "q_a_proj.weight"])), p[A + "q_a_layernorm.weight"], s.eps).to(s.dtype)
    q = F.linear(qr, s.weight(p[A + "q_b_proj.weight"])).view(B, L, s.heads, s.nope + s.rope)
    q = torch.cat((q[..., : s.nope], rope_interleaved(q[..., s.nope :], cos[:, :, None], sin[:, :, None])), -1)
    kv = F.linear(a, s.weight(p[A + "kv_a_proj_with_mqa.weight"]))
    latent = rms_norm(kv[..., : s.kl], p[A + "kv_a_layernorm.weight"], s.eps).to(s.dtype)
    k_rope = rope_interleaved(kv[..., s.kl :], cos, sin)
    kv = F.linear(latent, s.weight(p[A + "kv_b_proj.weight"])).view(B, L, s.heads, s.nope + s.vd)
    k = torch.cat((kv[..., : s.nope], k_rope[:, :, None].expand(-1, -1, s.heads, -1)), -1)
    keep, score = visible, None
    if s.mode == "dsa":
        score = index_scores(s, p, a.detach(), qr.detach(), cos, sin, visible)
        if L > s.topk:
            with torch.no_grad():
                chosen = torch.zeros_like(visible).scatter(-1, score.topk(s.topk, dim=-1)[1], True)
                keep = visible & (chosen | ~sparse)
    z = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)).float() * s.scale  # [B, H, L, L]
    z = z.masked_fill(~keep[:, None], NEG).softmax(-1)
    loss = None
    if s.mode == "dsa":
        target = z.detach().mean(1)
        logq = score.masked_fill(~keep, NEG).log_softmax(-1)
        loss = (target * (target.clamp_min(1e-9).log() - logq)).masked_fill(~keep, 0.0).sum(-1)
    o = torch.matmul(z.to(s.dtype), kv[..., s.nope :].transpose(1, 2)).transpose(1, 2).reshape(B, L, -1)
    return F.linear(o, s.weight(p[A + "o_proj.weight"])), loss, keep


def top_mask(z, k, fast):
    """True at the k largest of the last dimension; equal values in order of index."""
    if not fast:
        return torch.zeros_like(z, dtype=torch.bool).scatter(-1, z.topk(k, -1)[1], True)
    i = torch.arange(z.shape[-1], device=z.device)
    a, b = z[..., :, None], z[..., None, :]
    return ((b > a) | ((b == a) & (i[None, :] < i[:, None]))).sum(-1) < k


def route(s, p, b):
    """-> weight of every expert [.., E] float32, zero where not chosen; mask of the chosen."""
    g = F.linear(b.float(), p["mlp.gate.weight"].to(s.dtype).float()).sigmoid()
    with torch.no_grad():
        z = g + p["mlp.gate.e_score_correction_bias"]
        zg = z.unflatten(-1, (s.groups, -1))
        if s.fast:
            first = zg.max(-1, keepdim=True)
            i = torch.arange(zg.shape[-1], device=z.device)
            best = first[0][..., 0] + zg.masked_fill(i == first[1], NEG).amax(-1)
        else:
            best = zg.topk(min(2, zg.shape[-1]), -1)[0].sum(-1)
        kept = top_mask(best, s.keep_groups, s.fast)
        chosen = top_mask(zg.masked_fill(~kept[..., None], NEG).flatten(-2), s.experts_per_token, s.fast)
    w = g * chosen
    if s.normalise:
        w = w / w.sum(-1, keepdim=True)
    return w * s.routed_scale, chosen


def swiglu(s, x, gate, up, down):
    h = F.silu(F.linear(x, gate).float()) * F.linear(x, up).float()
    return F.linear(h.to(s.dtype), down)


def ffn(s, p, b):
    """-> output, chosen experts or None."""
    if "mlp.gate_proj.weight" in p:
        return swiglu(s, b, *(s.weight(p[f"mlp.{k}_proj.weight"]) for k in ("gate", "up", "down"))), None
    w, chosen = route(s, p, b)
    gate, up, down = (s.weight(p[f"mlp.experts.{k}_proj.weight"]) for k in ("gate", "up", "down"))
    E, width, d = gate.shape
    h = F.silu(F.linear(b, gate.reshape(E * width, d)).float()) * F.linear(b, up.reshape(E * width, d)).float()
    h = (h.unflatten(-1, (E, width)) * w[..., None]).flatten(-2).to(s.dtype)
    y = F.linear(h, down.permute(1, 0, 2).reshape(d, E * width))
    shared = swiglu(s, b, *(s.weight(p[f"mlp.shared_experts.{k}_proj.weight"]) for k in ("gate", "up", "down")))
    return (y.float() + shared.float()).to(s.dtype), chosen


def layer(s, p, x, cos, sin, visible, sparse):
    """One decoder layer over the residual stream x. The norm sees the unrounded sum."""
    a = rms_norm(x, p["input_layernorm.weight"], s.eps).to(s.dtype)
    h, loss, keep = attention(s, p, a, cos, sin, visible, sparse)
    t = x.float() + h.float()
    b = rms_norm(t, p["post_attention_layernorm.weight"], s.eps).to(s.dtype)
    h, chosen = ffn(s, p, b)
    return (t.to(s.dtype).float() + h.float()).to(s.dtype), loss, keep, chosen


def mtp_input(s, p, embedded, hidden):
    """embedded: embedding of token i+1; hidden: state of token i after the final norm. Embedding half first."""
    e = rms_norm(embedded, p["enorm.weight"], s.eps).to(s.dtype)
    h = rms_norm(hidden, p["hnorm.weight"], s.eps).to(s.dtype)
    return F.linear(torch.cat((e, h), -1), p["eh_proj.weight"].to(s.dtype))


def token_loss(s, y, head, target, weight):
    """Sum of weighted cross entropies."""
    z = F.linear(y, head.to(s.dtype)).float()
    return ((torch.logsumexp(z, -1) - z.gather(-1, target[..., None])[..., 0]) * weight).sum()


def visible_mask(doc, parent):
    """Causal, inside one document, plus the document it continues: [B, L, L]."""
    L = doc.shape[1]
    same = (doc[:, :, None] == doc[:, None, :]) | (parent[:, :, None] == doc[:, None, :])
    return same & torch.ones(L, L, dtype=torch.bool, device=doc.device).tril()


def run_all(c, s, p, tokens, pos=None, visible=None, sparse=None, layer=layer, mtp=False, want=None):
    """-> state after the final norm [B, L, d], and the draft layer's state for token i+2 (or None).

    want: a dict that collects (indexer loss, selection, chosen experts) by layer.
    """
    B, L = tokens.shape
    dev = tokens.device
    pos = torch.arange(L, device=dev).expand(B, L) if pos is None else pos
    visible = torch.ones(L, L, dtype=torch.bool, device=dev).tril().expand(B, L, L) if visible is None else visible
    sparse = torch.tensor(True, device=dev) if sparse is None else sparse
    cos, sin = rope_at(c, pos)
    embedded = F.embedding(tokens, p["model.embed_tokens.weight"]).to(s.dtype)

    def step(n, x):
        lp = {k: v for k, v in layer_of(p, n).items() if k.startswith(("input_", "post_", "self_attn.", "mlp."))}
        x, *rest = layer(s, lp, x, cos, sin, visible, sparse)
        if want is not None:
            want[n] = rest
        return x

    x = embedded
    n = c["num_hidden_layers"]
    for i in range(n):
        x = step(i, x)
    y = rms_norm(x, p["model.norm.weight"], s.eps).to(s.dtype)
    if not mtp:
        return y, None
    lp = layer_of(p, n)
    x = step(n, mtp_input(s, lp, F.pad(embedded[:, 1:], (0, 0, 0, 1)), y))
    return y, rms_norm(x, lp["shared_head.norm.weight"], s.eps).to(s.dtype)


def logits(s, p, y):
    return F.linear(y.float(), p["lm_head.weight"].to(s.dtype).float())


def load(path, device="cpu"):
    """A published checkpoint -> config, float32 parameters (experts stacked, FP8 expanded)."""
    from safetensors import safe_open
    path = pathlib.Path(path)
    c = json.loads((path / "config.json").read_text())
    raw = {}
    for f in sorted(path.glob("model*.safetensors")):
        with safe_open(f, "pt") as file:
            for k in file.keys():
                raw[k] = file.get_tensor(k)
    p, experts = {}, {}
    for k, t in raw.items():
        if k.endswith("_scale_inv"):
            continue
        if t.dtype == torch.float8_e4m3fn:
            t = t.float() * spread(raw[k + "_scale_inv"], *t.shape)
        t = t.float()
        if ".experts." in k:
            head, tail = k.split(".experts.")
            i, name = tail.split(".", 1)
            experts.setdefault(f"{head}.experts.{name}", {})[int(i)] = t
        else:
            p[k] = t
    p |= {k: torch.stack([v[i] for i in range(len(v))]) for k, v in experts.items()}
    return c, {k: v.to(device) for k, v in p.items()}
