#!/usr/bin/env python3
"""Runs `stoker eval` on the reference checkpoints and compares with their expected results.

    check_reference.py STOKER REFERENCE_DIR [--mode MODE] [--chunk N] [--case NAME] [-- EXTRA FLAGS]

Tolerances are those of the reference checkpoints' README: with f32 arithmetic max |d| <= 1e-3 max |logit|, experts (as
sets) with their weights, selections and greedy tokens equal; with the defaults (bf16) and choices forced, relative L2
error <= 6e-2. An FP8 cache of random values, which no README speaks of, may err four times as much. The modes cuda and
cuda-f32 run on the first GPU and are chosen by name. Standard library only.
"""

import argparse
import array
import json
import math
import pathlib
import subprocess
import sys
import tempfile

F32_TOLERANCE = 1e-3
BF16_TOLERANCE = 6e-2
FP8_CACHE_TOLERANCE = 2.5e-1
WEIGHT_TOLERANCE = 1e-3
MODES = {
    "reference": ["--backend", "reference"],
    "f32": ["--backend", "cpu", "--activations", "f32", "--kv-cache", "f32"],
    "default": ["--backend", "cpu"],
    "fp8-cache": ["--backend", "cpu", "--kv-cache", "fp8"],
    "cuda-f32": ["--backend", "cuda", "--devices", "0", "--activations", "f32", "--kv-cache", "f32"],
    "cuda": ["--backend", "cuda", "--devices", "0"],
}
F32_MODES = ("reference", "f32", "cuda-f32")
HOST_MODES = ("reference", "f32", "default", "fp8-cache")


def read_npy(path):
    """float32 [rows, cols] of a version 1 .npy file -> (rows, cols, flat values)."""
    data = path.read_bytes()
    assert data[:6] == b"\x93NUMPY", path
    header_size = int.from_bytes(data[8:10], "little")
    header = eval(data[10 : 10 + header_size], {"__builtins__": {}})  # a literal dict
    assert header["descr"] == "<f4" and not header["fortran_order"], header
    values = array.array("f")
    values.frombytes(data[10 + header_size :])
    rows, cols = header["shape"]
    assert len(values) == rows * cols, (header, len(values))
    return rows, cols, values


def layers_by_index(path):
    return {entry["layer"]: entry for entry in json.loads(path.read_text())["layers"]}


def compare_logits_f32(ours, expected, problems):
    rows, cols, want = expected
    if ours[:2] != (rows, cols):
        problems.append(f"logits are {ours[:2]}, expected {(rows, cols)}")
        return 0.0
    got = ours[2]
    largest = max(abs(x) for x in want)
    worst = max(abs(a - b) for a, b in zip(got, want)) / largest
    if not worst <= F32_TOLERANCE:
        problems.append(f"logits differ by {worst:.2e} of the largest")
    for r in range(rows):
        row = want[r * cols : (r + 1) * cols]
        first, second = sorted(row, reverse=True)[:2]
        mine = got[r * cols : (r + 1) * cols]
        if first - second > 1e-3 and mine.index(max(mine)) != row.index(first):
            problems.append(f"greedy token of row {r} differs")
    return worst


def compare_logits_l2(ours, expected, tolerance, problems):
    error = math.sqrt(sum((a - b) ** 2 for a, b in zip(ours[2], expected[2])))
    worst = error / math.sqrt(sum(b * b for b in expected[2]))
    if not worst <= tolerance:
        problems.append(f"relative error of the logits is {worst:.2e}")
    return worst


def compare_routes(ours, expected, problems):
    if ours.keys() != expected.keys():
        problems.append(f"routed layers {sorted(ours)}, expected {sorted(expected)}")
        return
    for layer, want in expected.items():
        for t, (mine, theirs) in enumerate(zip(ours[layer]["experts"], want["experts"], strict=True)):
            a = dict(zip(mine, ours[layer]["weights"][t]))
            b = dict(zip(theirs, want["weights"][t]))
            if a.keys() != b.keys():
                problems.append(f"layer {layer}, token {t}: experts {mine}, expected {theirs}")
            elif any(abs(a[e] - b[e]) > WEIGHT_TOLERANCE * max(1.0, abs(b[e])) for e in b):
                problems.append(f"layer {layer}, token {t}: weights {a}, expected {b}")


def compare_selections(ours, expected, problems):
    for layer, want in expected.items():
        mine = dict(zip(ours[layer]["rows"], ours[layer]["positions"]))
        for row, positions in zip(want["rows"], want["positions"]):
            if mine[row] != positions:
                problems.append(f"layer {layer}, row {row}: selected positions differ")


def check(stoker, case, mode, chunk, extra):
    expected = read_npy(case / "logits.npy")
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch)
        command = [stoker, "eval", case, "--tokens", case / "tokens.json", "--logits", out / "logits.npy"]
        command += ["--routes", out / "routes.json", *MODES[mode], *extra]
        if chunk:
            command += ["--chunk", str(chunk)]
        sparse = (case / "selected.json").exists()
        if sparse:
            rows = json.loads((case / "selected.json").read_text())["layers"][0]["rows"]
            command += ["--selected", out / "selected.json", "--rows", ",".join(map(str, rows))]
        if mode not in F32_MODES:
            command += ["--force-routes", case / "routes.json"]
            if sparse:
                command += ["--force-selected", case / "selected.json"]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if mode == "fp8-cache" and "takes a power of two" in done.stderr:
            return [], math.nan  # this model cannot have one, and is told so
        if done.returncode != 0:
            return [f"exit status {done.returncode}: {done.stderr.strip()}"], math.inf
        problems = []
        ours = read_npy(out / "logits.npy")
        if mode not in F32_MODES:
            tolerance = FP8_CACHE_TOLERANCE if mode == "fp8-cache" else BF16_TOLERANCE
            worst = compare_logits_l2(ours, expected, tolerance, problems)
        else:
            worst = compare_logits_f32(ours, expected, problems)
            compare_routes(layers_by_index(out / "routes.json"), layers_by_index(case / "routes.json"), problems)
            if sparse:
                compare_selections(
                    layers_by_index(out / "selected.json"), layers_by_index(case / "selected.json"), problems
                )
        return problems, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("reference", type=pathlib.Path)
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--chunk", type=int, action="append", help="tokens a pass; 0: all in one")
    parser.add_argument("--case", action="append")
    parser.add_argument("extra", nargs="*", help="further flags of eval")
    args = parser.parse_args()
    cases = [p.parent for p in sorted(args.reference.glob("*/tokens.json")) if not args.case or p.parent.name in args.case]
    if not cases:
        print(f"no reference checkpoints in {args.reference}: skipped")
        return 77
    failed = 0
    for case in cases:
        for mode in args.mode or HOST_MODES:
            for chunk in args.chunk or [0, 7, 1]:
                problems, worst = check(args.stoker, case, mode, chunk, args.extra)
                failed += bool(problems)
                state = "FAILED" if problems else "ok"
                print(f"{case.name:24} {mode:10} chunk {chunk or 'all':>3}  error {worst:.1e}  {state}", flush=True)
                for problem in problems[:5]:
                    print(f"    {problem}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
