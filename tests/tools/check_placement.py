#!/usr/bin/env python3
"""Placement changes speed, never output: a model's logits and chosen experts, bit for bit, wherever its experts lie.

    check_placement.py STOKER MODEL_DIR TOKENS.json [--sample N] [--forms as-is,fp8,int8,int4] [--backend cpu|cuda]
        [--devices 0 --devices 0,1 ...]

Packs MODEL_DIR in every form, each once in one file and once in two, and runs `stoker eval` on the tokens, decoded one by
one and in one pass, over: memory for the fewest slots allowed, for some and for all experts; both I/O engines; direct and
buffered; prefetch on and off; one and two threads; one directory, two, a mirror. Every run must give the same bytes
as the first of its form; `as-is` (the published shards) and `fp8` (packed without loss) must agree with each other. With --sample only
N runs of each form are drawn (seeded), the extremes always among them. With --backend cuda (a machine with a GPU) also over:
GPU memory for no expert, one, some and all; experts that lie in RAM computed by the host, the GPU, in turns, or wherever it is
soonest; one device, and two that share GPU 0 (--devices says others). Standard library only.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

CPU_AXES = {
    "ram": ["fewest", "some", "all"],
    "io": ["uring", "pread"],
    "direct": ["auto", "off"],
    "prefetch": ["on", "off"],
    "threads": ["1", "2"],
    "where": ["one", "two", "mirror"],
}
CUDA_AXES = {
    "ram": ["fewest", "some", "all"],
    "prefetch": ["on", "off"],
    "vram": ["none", "one", "some", "all"],
    "expert-site": ["auto", "host", "device", "alternate"],
}
DEVICES = ["0", "0,0"]


def stoker(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def device_bytes(num_slots, slot_bytes):
    """What the allocation for so many slots takes of a GPU: tools/device_plan.h, gpu/factory.h."""
    aligned = -(-slot_bytes // 4096) * 4096
    count = num_slots * aligned + 4096 if num_slots else 0
    block = 2 << 20
    if count > block // 2:
        return -(-count // block) * block
    return block // 2 if count > block // 4 else count


class Form:
    """One way a model's experts are stored, and how much memory which share of them takes."""

    def __init__(self, program, name, model, scratch, backend, devices):
        self.name, self.program, self.scratch, self.backend = name, program, scratch, backend
        self.model = model
        self.directories = {"one": None}
        if name != "as-is":
            self.model = self.pack(model, "one", 1)
            two = self.pack(model, "two", 2)
            # The second file in a directory of its own; and both files twice.
            second = scratch / f"{name}-second"
            second.mkdir()
            shutil.move(two / "experts-001.safetensors", second)
            copy = scratch / f"{name}-copy"
            copy.mkdir()
            shutil.copy(self.model / "experts-000.safetensors", copy)
            self.two = two
            self.directories |= {"two": f"{two},{second}", "mirror": f"{self.model},{copy}"}
        self.axes = dict(CPU_AXES, where=list(self.directories))
        if backend == "cuda":
            self.axes = dict(CUDA_AXES, devices=devices)
        report = json.loads(stoker(program, "inspect", self.model, "--json"))["model"]
        config, slot_bytes = report["config"], report["experts"]["slot_bytes"]
        fewest = config["num_experts_per_tok"]
        every = (config["num_hidden_layers"] - config["first_k_dense_replace"]) * config["n_routed_experts"]
        self.ram = {"fewest": fewest * slot_bytes, "some": every // 3 * slot_bytes, "all": every * slot_bytes}
        # Beside what a device needs without experts.
        self.vram = {name: device_bytes(count, slot_bytes)
                     for name, count in {"none": 0, "one": 1, "some": every // 4, "all": every}.items()}
        self.device_needs = {}

    def device_need(self, devices, tokens, chunks):
        """Bytes that a device takes without any expert: what the program asks for when it is given next to nothing."""
        key = (devices, *chunks)
        if key not in self.device_needs:
            arguments = ["eval", self.model, "--tokens", tokens, "--logits", f"{self.scratch}/out.npy", *chunks]
            arguments += ["--backend", "cuda", "--devices", devices, "--vram", "1"]
            try:
                stoker(self.program, *arguments)
            except RuntimeError as error:
                asked = re.search(r"give it at least (\d+) bytes", str(error))
                if not asked:
                    raise
                self.device_needs[key] = int(asked[1])
        return self.device_needs[key]

    def pack(self, model, label, files):
        out = self.scratch / f"{self.name}-{label}"
        stoker(self.program, "pack", model, "--out", out, "--experts", self.name, "--files", files)
        return out

    def run(self, tokens, chunk, choice):
        """Hash of logits and routes."""
        out = self.scratch / "out"
        chunks = ["--chunk", "1"] if chunk == 1 else []
        arguments = ["--backend", self.backend]
        for flag, value in choice.items():
            if flag == "where":
                continue
            if flag == "ram":
                value = self.ram[value]
            elif flag == "vram":
                value = self.device_need(choice["devices"], tokens, chunks) + self.vram[value]
            arguments += [f"--{flag}", value]
        where = choice.get("where", "one")
        model = self.two if where == "two" else self.model
        if self.directories[where]:
            arguments += ["--store", self.directories[where]]
        stoker(self.program, "eval", model, "--tokens", tokens, "--logits", f"{out}.npy", "--routes", f"{out}.json",
               *chunks, *arguments)
        digest = hashlib.sha256()
        for name in (f"{out}.npy", f"{out}.json"):
            digest.update(pathlib.Path(name).read_bytes())
        return digest.hexdigest()

    def choices(self, sample, rng):
        every = [dict(zip(self.axes, values)) for values in itertools.product(*self.axes.values())]
        if not sample or sample >= len(every):
            return every
        return [every[0], every[-1]] + rng.sample(every[1:-1], sample - 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("tokens", type=pathlib.Path)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--forms", default="as-is,fp8,int8,int4")
    parser.add_argument("--backend", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--devices", action="append", help="with cuda: which GPUs, as the program takes them")
    args = parser.parse_args()
    if not args.tokens.exists():
        print(f"skipped: {args.tokens} is not there")
        return 77

    problems = []
    rng = random.Random(7)
    lossless = {}  # chunk -> hashes of forms that hold the same weights
    for name in args.forms.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            form = Form(args.stoker, name, args.model, pathlib.Path(scratch), args.backend, args.devices or DEVICES)
            for chunk in (1, 0):
                first, count = None, 0
                for choice in form.choices(args.sample, rng):
                    try:
                        got = form.run(args.tokens, chunk, choice)
                    except RuntimeError as error:
                        problems.append(f"{name}: {choice}: {error}")
                        continue
                    first = first or got
                    count += 1
                    if got != first:
                        problems.append(f"{name}, {'decoded' if chunk else 'one pass'}: {choice} differs")
                if name in ("as-is", "fp8"):
                    lossless.setdefault(chunk, set()).add(first)
                print(f"{name}, {'decoded' if chunk else 'one pass'}: {count} runs", flush=True)
    for hashes in lossless.values():
        if len(hashes) > 1:
            problems.append("the published shards and the packed FP8 store give different bits")
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
