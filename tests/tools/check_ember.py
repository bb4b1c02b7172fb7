#!/usr/bin/env python3
"""The shipped model through the program: expected token ids, and the questions it must answer.

    check_ember.py STOKER MODEL_DIR RECIPE_DIR [--backend cuda [--devices 0 --devices 0,1 ...]]

Expected ids were computed by the recipe in float32 on the shipped (FP8) weights; the program must give the same with
f32 arithmetic and with its defaults, on every instruction set this machine has, or with --backend cuda on its GPUs. Of the
twenty known questions at least nineteen must be answered, also with an FP8 cache. Standard library only.
"""

import argparse
import json
import pathlib
import subprocess
import sys

F32 = ["--activations", "f32", "--kv-cache", "f32"]
REQUIRED_ANSWERS = 19


def generate(stoker, model, prompt, *flags):
    command = [stoker, "generate", str(model), "--prompt-file", "-", "--greedy", "--json", *flags]
    done = subprocess.run(command, input=prompt, capture_output=True, text=True)
    if done.returncode != 0:
        return {"error": done.stderr.strip(), "tokens": [], "prompt_tokens": [], "text": ""}
    return json.loads(done.stdout)


def instruction_sets(stoker):
    """Those that generate accepts here."""
    found = []
    for isa in ("scalar", "avx2", "avx512"):
        command = [stoker, "generate", "--prompt", "x", "-n", "1", "--isa", isa]
        if subprocess.run(command, capture_output=True).returncode == 0:
            found.append(isa)
    return found


def runs_of(backend, devices, stoker):
    if backend == "cuda":
        cuda = ["--backend", "cuda", "--devices"]
        return [[*F32, *cuda, devices[0]], *([*cuda, some] for some in devices)]
    runs = [["--backend", "reference"], F32, []]
    runs += [[*F32, "--isa", isa] for isa in instruction_sets(stoker)]
    return [*runs, [*F32, "--threads", "1"]]


def check_golden(stoker, model, runs, golden, problems):
    for case in golden["cases"]:
        expected = case["continuation_ids"]
        for flags in runs:
            got = generate(stoker, model, case["prompt"], "--raw", "-n", str(len(expected)), *flags)
            name = f"{case['name']} {' '.join(flags) or 'defaults'}"
            if got["prompt_tokens"] != case["ids"]:
                problems.append(f"{name}: prompt ids differ {got.get('error', '')}")
            elif got["tokens"] != expected:
                problems.append(f"{name}: {got['tokens']}, expected {expected}")
            else:
                print(f"{name}: {len(expected)} tokens equal")


def check_questions(stoker, model, flags, questions, facts, problems):
    shorts = {p["name"]: p["short"].rstrip(".") for p in facts["known"] + facts["random"]}
    wrong = []
    for question in questions["known"]:
        want = shorts[question["short_of"]] if "short_of" in question else question["contains"]
        answer = generate(stoker, model, question["ask"], *flags)["text"]
        if want not in answer:
            wrong.append(f"    {question['ask']} -> {answer!r}, expected {want!r}")
    right = len(questions["known"]) - len(wrong)
    print(f"{right} of {len(questions['known'])} known questions answered {' '.join(flags)}")
    print("\n".join(wrong))
    if right < REQUIRED_ANSWERS:
        problems.append(f"{right} questions answered, {REQUIRED_ANSWERS} are required")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("recipe", type=pathlib.Path)
    parser.add_argument("--backend", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--devices", action="append", help="with cuda: which GPUs, as the program takes them")
    args = parser.parse_args()
    problems = []
    read = lambda name: json.loads((args.recipe / name).read_text())
    runs = runs_of(args.backend, args.devices or ["0", "0,0"], args.stoker)
    check_golden(args.stoker, args.model, runs, read("ember_golden.json"), problems)
    for cache in ([], ["--kv-cache", "fp8"]):
        flags = ["--backend", args.backend, *cache]
        check_questions(args.stoker, args.model, flags, read("questions.json"), read("facts.json"), problems)
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
