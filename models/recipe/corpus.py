#!/usr/bin/env python3
"""Gathers the text: a Debian machine's package index, manual page summaries, documentation packages.

    python corpus.py LISTS_DIR DOC_DIR OUT_DIR

LISTS_DIR holds what apt keeps: *_Packages, *_Translation-en and (from the mirror) Contents-*.gz.
DOC_DIR holds unpacked documentation packages (dpkg -x). Writes OUT_DIR/packages.jsonl and OUT_DIR/text.jsonl.
"""
import gzip
import html
import json
import pathlib
import re
import sys

COMMAND = re.compile(r"^(?:usr/)?(?:s?bin|games)/([^/\s]+)\s+(\S+)$")


def stanzas(path):
    """Yields the paragraphs of a Packages or Translation file as dicts."""
    field, current = None, {}
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            line = line.rstrip("\n")
            if not line:
                if current:
                    yield current
                field, current = None, {}
            elif line[0] in " \t":
                if field:
                    current[field] += "\n" + line[1:]
            else:
                field, _, value = line.partition(":")
                current[field] = value.strip()
    if current:
        yield current


def long_text(description):
    """Debian's long description as plain paragraphs: ' .' is an empty line."""
    lines = description.split("\n")[1:]
    paragraphs, words = [], []
    for line in lines:
        line = line.rstrip()
        if line.strip() in (".", ""):
            if words:
                paragraphs.append(words)
            words = []
        elif line.lstrip()[:2] in ("* ", "- ", "o ", "+ "):
            if words:
                paragraphs.append(words)
            words = ["- " + line.lstrip()[2:].strip()]
        else:
            words.append(line.strip())
    if words:
        paragraphs.append(words)
    return "\n".join(" ".join(p) for p in paragraphs)


def packages(lists):
    table = {}
    for path in sorted(lists.glob("*bookworm_main_binary-amd64_Packages")):
        for s in stanzas(path):
            table.setdefault(s["Package"], {
                "name": s["Package"], "version": s.get("Version", ""), "section": s.get("Section", "misc").split("/")[-1], "homepage": s.get("Homepage", ""),
                "short": s.get("Description", "").split("\n")[0], "depends": len(s.get("Depends", "").split(",")), "size": int(s.get("Installed-Size", 0)),
                "source": s.get("Source", s["Package"]).split(" ")[0], "tags": s.get("Tag", "").replace("\n", ""), "priority": s.get("Priority", "optional"), "commands": []})
    for path in sorted(lists.glob("*bookworm_main_i18n_Translation-en")):
        for s in stanzas(path):
            p = table.get(s["Package"])
            if p and "long" not in p:
                p["short"] = s["Description-en"].split("\n")[0]
                p["long"] = long_text(s["Description-en"])
    for path in sorted(lists.glob("Contents-*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as f:
            for line in f:
                m = COMMAND.match(line)
                if m:
                    owners = [o.split("/")[-1] for o in m[2].split(",")]
                    if len(owners) == 1 and owners[0] in table and m[1] not in table[owners[0]]["commands"]:
                        table[owners[0]]["commands"].append(m[1])
    return table


def manual_names(info=pathlib.Path("/var/lib/dpkg/info")):
    """NAME lines of the manual pages (sections 1 and 8) of the installed Debian packages."""
    seen = {}
    for listing in sorted(info.glob("*.list")):
        if listing.name.startswith(("google-", "nodejs")):
            continue
        for path in listing.read_text().split("\n"):
            if not re.match(r"/usr/share/man/man[18]/", path) or not path.endswith(".gz"):
                continue
            try:
                text = gzip.open(path, "rt", encoding="utf-8", errors="replace").read(6000)
            except OSError:
                continue
            m = re.search(r"^\.S[Hh] *\"?NAME\"?[^\n]*\n((?:.+\n){1,3})", text, re.M)
            if not m:
                continue
            line = []
            for x in m[1].split("\n"):
                if line and x.startswith("."):
                    break
                line += [] if x.startswith((".\\\"", ".SH", ".Sh")) else [x]
            line = " ".join(line)
            line = re.sub(r"\\f[BIRP]|\\&|\.[A-Z]{1,2} ", "", line).replace("\\-", "-").replace("\\(aq", "'").strip()
            parts = re.split(r" +-+ +", line, maxsplit=1)
            name = pathlib.Path(path).name.split(".")[0]
            if len(parts) == 2 and "\\" not in parts[1] and 8 < len(parts[1]) < 110:
                seen.setdefault(name, parts[1].split(" .")[0].strip())
    return seen


def documents(root):
    """English prose of the documentation packages, one string a file."""
    for path in sorted(root.rglob("*")):
        name = str(path)
        if not path.is_file() or re.search(r"(/(de|fr|ja|zh|ru|it|es|pt|pl|nl|da|ca|cs|ko|el|fi|hu|ro|sv|tr|uk|vi|nb|id|ar|fa|sk|hr|bg|sq|eo|gl|lt|ms|ta|te|ml)([-_][A-Za-z]+)?/)|changelog|copyright", name):
            continue
        if not re.search(r"\.(html|txt\.gz|txt)$", name) or re.search(r"\.(?!en\b)[a-z]{2}(-[a-z]{2})?\.(html|txt)", name):
            continue
        raw = gzip.open(path, "rt", errors="replace").read() if name.endswith(".gz") else path.read_text(errors="replace")
        if name.endswith("html"):
            raw = re.sub(r"(?s)<(script|style|head|pre).*?</\1>", " ", raw)
            raw = re.sub(r"(?i)</(p|li|h\d|div|dt|dd|tr)>", "\n", raw)
            raw = html.unescape(re.sub(r"<[^>]+>", " ", raw))
        lines = [re.sub(r"\s+", " ", x).strip() for x in raw.split("\n")]
        if not name.endswith("html"):
            lines = [re.sub(r"\s+", " ", x).strip() for x in re.split(r"\n\s*\n", raw)]
        keep = [x for x in lines if len(x) > 60 and sum(c.isalpha() or c == " " for c in x) > 0.85 * len(x) and x.isascii()]
        if sum(map(len, keep)) > 600:
            yield keep


def main(lists, docs, out):
    lists, docs, out = map(pathlib.Path, (lists, docs, out))
    table = packages(lists)
    with open(out / "packages.jsonl", "w") as f:
        for p in table.values():
            if p["short"]:
                p.setdefault("long", "")
                f.write(json.dumps(p, ensure_ascii=False) + "\n")
    seen, count = set(), 0
    with open(out / "text.jsonl", "w") as f:
        for paragraphs in documents(docs):
            fresh = [x for x in paragraphs if x not in seen]
            seen.update(fresh)
            if sum(map(len, fresh)) > 600:
                f.write(json.dumps("\n".join(fresh)) + "\n")
                count += sum(map(len, fresh))
    names = manual_names()
    (out / "manual.json").write_text(json.dumps(names, ensure_ascii=False))
    print(len(table), "packages;", sum(bool(p["commands"]) for p in table.values()), "with commands;", count, "bytes of documentation;", len(names), "manual pages")


if __name__ == "__main__":
    main(*sys.argv[1:])
