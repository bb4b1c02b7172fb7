#!/usr/bin/env python3
"""Fails on an include that runs against the arrows between our folders.

usage: include_arrows.py ROOT

What may include what is written in the tables below, once. A folder that the tables do not know is an
error too: who adds one says where it stands.
"""

import pathlib
import re
import sys

# Folder -> folders whose headers it may include, beside its own.
FOLDERS = {
    "core": set(),
    "quant": {"core"},
    "cpu": {"core", "quant"},
    "gpu": {"core", "quant"},
    "storage": {"core", "quant"},
    "prefetch": {"core"},
    "tools": {"core", "quant", "cpu", "gpu", "storage", "prefetch"},
    "tests": {"core", "quant", "cpu", "gpu", "storage", "prefetch", "tools"},
}

# The same inside core: base <- tensor <- model <- interface <- runtime; text stands beside interface.
CORE = {
    "base": set(),
    "tensor": {"base"},
    "model": {"base", "tensor"},
    "text": {"base", "model"},
    "interface": {"base", "tensor", "model"},
    "runtime": {"base", "tensor", "model", "text", "interface"},
}

# Headers of libraries -> folders that wrap them. tests/<folder> may include what <folder> may.
LIBRARIES = {
    r"cuda|cublas|cub/|cute/|cutlass/|cooperative_groups|mma\.h|nccl|nvml|nvtx|device_launch_parameters|vector_types\.h":
        {"gpu"},
    r"liburing": {"storage"},
    r"xxh": {"storage"},
    r"dnnl|oneapi/": {"cpu"},
    r"hwloc": {"cpu", "storage"},
    r"omp\.h": {"cpu", "storage", "tools"},
    r"pcre2": {"core/text"},
    r"CLI/|histedit|editline": {"tools"},
    r"gtest/|gmock/|benchmark/": {"tests"},
}

SOURCES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)


def core_layer(path):
    """'text' for core/text/bpe.h; '' for a file that lies in core itself."""
    return path.parts[1] if len(path.parts) > 2 else ""


def check_ours(path, target):
    """The complaint about `path` including our own header `target`, or None."""
    here, there = path.parts[0], target.parts[0]
    if there != here and there not in FOLDERS[here]:
        allowed = ", ".join(sorted(FOLDERS[here])) or "none"
        return f"{here} may not include {there} (may: {allowed})"
    if here == there == "core":
        here, there = core_layer(path), core_layer(target)
        if there != here and there not in CORE[here]:
            allowed = ", ".join(sorted(CORE[here])) or "none"
            return f"core/{here} may not include core/{there} (may: {allowed})"
    return None


def check_library(path, header):
    parts = path.parts[1:] if path.parts[0] == "tests" and len(path.parts) > 2 else path.parts
    places = {path.parts[0], parts[0], "/".join(parts[:2])}
    for pattern, folders in LIBRARIES.items():
        if re.match(pattern, header) and not places & folders:
            return f"<{header}> is wrapped by {' and '.join(sorted(folders))} alone"
    return None


def check_file(root, path):
    if path.parts[0] == "core" and core_layer(path) not in CORE:
        yield 0, f"core/{core_layer(path)} has no place in the table of core's layers"
        return
    if path.suffix in {".cu", ".cuh"} and path.parts[0] != "gpu":
        yield 0, "CUDA sources live in gpu"
    text = (root / path).read_text(errors="replace")
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        header = match.group(2)
        target = pathlib.PurePosixPath(header)
        complaint = None
        if ".." in target.parts:
            complaint = f'"{header}" climbs out of its folder; include from the root of the repository'
        elif target.parts[0] in FOLDERS and (root / target).is_file():
            if match.group(1) == "<":
                complaint = f"<{header}> is ours: include it with quotes"
            else:
                complaint = check_ours(path, target)
        elif match.group(1) == '"' and (root / path.parent / target).is_file():
            complaint = f'"{header}" is relative; include from the root of the repository'
        else:
            complaint = check_library(path, header)
        if complaint:
            yield line, complaint


def check_tree(root):
    """All complaints about the tree at `root`, as 'file:line: what', and the number of files read."""
    complaints, count = [], 0
    for folder in sorted(FOLDERS):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in SOURCES or not file.is_file():
                continue
            count += 1
            path = pathlib.PurePosixPath(file.relative_to(root).as_posix())
            complaints += [f"{path}:{line}: {what}" for line, what in check_file(root, path)]
    return complaints, count


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    complaints, count = check_tree(pathlib.Path(sys.argv[1]))
    for complaint in complaints:
        print(complaint)
    print(f"{count} files read, {len(complaints)} includes against an arrow")
    if count == 0:
        print("no sources found: is ROOT the root of the repository?", file=sys.stderr)
        return 1
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
