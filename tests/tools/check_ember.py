#!/usr/bin/env python3
"""The shipped model through the program: expected token ids, and the questions it must answer.

    check_ember.py STOKER MODEL_DIR RECIPE_DIR

Expected ids were computed by the recipe in float32 on the shipped (FP8) weights; the program must give the same with
f32 arithmetic and with its defaults, on every instruction set this machine has. Of the twenty known questions at least
nineteen must be answered. Standard library only.
"""

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


def check_golden(stoker, model, golden, problems):
    runs = [["--backend", "reference"], F32, []]
    runs += [[*F32, "--isa", isa] for isa in instruction_sets(stoker)]
    runs += [[*F32, "--threads", "1"]]
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


def check_questions(stoker, model, questions, facts, problems):
    shorts = {p["name"]: p["short"].rstrip(".") for p in facts["known"] + facts["random"]}
    wrong = []
    for question in questions["known"]:
        want = shorts[question["short_of"]] if "short_of" in question else question["contains"]
        answer = generate(stoker, model, question["ask"])["text"]
        if want not in answer:
            wrong.append(f"    {question['ask']} -> {answer!r}, expected {want!r}")
    right = len(questions["known"]) - len(wrong)
    print(f"{right} of {len(questions['known'])} known questions answered")
    print("\n".join(wrong))
    if right < REQUIRED_ANSWERS:
        problems.append(f"{right} questions answered, {REQUIRED_ANSWERS} are required")


def main():
    stoker, model, recipe = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    problems = []
    read = lambda name: json.loads((recipe / name).read_text())
    check_golden(stoker, model, read("ember_golden.json"), problems)
    check_questions(stoker, model, read("questions.json"), read("facts.json"), problems)
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
