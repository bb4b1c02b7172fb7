"""The chat encoding of DeepSeek-V3.2 (its own rules, our own code), and a reader of what the model wrote.

    python chat.py CASES.jsonl      checks encode() against golden cases
"""
import json
import re
import sys

BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
DSML = "｜DSML｜"
OPEN, CLOSE = "<think>", "</think>"

TOOL_TEXT = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{DSML}function_calls>" block like the following as part of your reply to the user:
<{DSML}function_calls>
<{DSML}invoke name="$FUNCTION_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$FUNCTION_NAME2">
...
</{DSML}invoke>
</{DSML}function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<{DSML}function_calls>
...
</{DSML}function_calls>

<function_results>
...
</function_results>

{OPEN}...thinking about results{CLOSE}

Here are the functions available in JSONSchema format:
<functions>
%s
</functions>
"""


def dumps(x):
    return json.dumps(x, ensure_ascii=False)


def call_text(calls):
    out = []
    for c in calls:
        f = c["function"]
        args = json.loads(f["arguments"])
        lines = [f'<{DSML}parameter name="{k}" string="{"true" if isinstance(v, str) else "false"}">{v if isinstance(v, str) else dumps(v)}</{DSML}parameter>' for k, v in args.items()]
        out.append(f'<{DSML}invoke name="{f["name"]}">\n' + "\n".join(lines) + f"\n</{DSML}invoke>")
    return f"\n\n<{DSML}function_calls>\n" + "\n".join(out) + f"\n</{DSML}function_calls>"


def pieces(messages, thinking):
    """Yields (text, spoken): the prompt in pieces; spoken pieces are what the model itself writes."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for i, m in enumerate(messages):
        role, content = m["role"], m.get("content") or ""
        if role == "system":
            if m.get("tools"):
                content += "\n\n" + TOOL_TEXT % "\n".join(dumps(t["function"]) for t in m["tools"])
            if m.get("response_format"):
                content += "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n" + dumps(m["response_format"])
            yield content, False
        elif role == "user":
            yield USER + content + ASSISTANT + (OPEN if thinking and i == last else CLOSE), False
        elif role == "assistant":
            text = (m.get("reasoning_content") or "") + CLOSE if thinking and i > last else ""
            text += content + (call_text(m["tool_calls"]) if m.get("tool_calls") else "")
            yield text + EOS, True
        elif role == "tool":
            k = i
            while messages[k]["role"] == "tool":
                k -= 1
            text = "\n\n<function_results>" if k == i - 1 else ""
            text += f"\n<result>{content}</result>"
            if i - k == len(messages[k]["tool_calls"]):
                text += "\n</function_results>\n\n" + (OPEN if thinking and i >= last else CLOSE)
            yield text, False
        else:
            raise ValueError(role)


def encode(messages, thinking=False, bos=True):
    return (BOS if bos else "") + "".join(t for t, _ in pieces(messages, thinking))


def parse(text, thinking=False):
    """{"reasoning_content", "content", "tool_calls": [{"name", "arguments"}]} of a completion; well-formed text only, else ValueError."""
    text = text.split(EOS)[0]
    reasoning = ""
    if thinking:
        reasoning, found, text = text.partition(CLOSE)
        if not found:
            raise ValueError("thinking never closed")
    content, found, block = text.partition(f"\n\n<{DSML}function_calls>\n")
    calls = []
    if found:
        body, closed, rest = block.partition(f"\n</{DSML}function_calls>")
        if not closed or rest:
            raise ValueError("call block not closed")
        for m in re.finditer(rf'<{DSML}invoke name="([^"]*)">\n(.*?)\n</{DSML}invoke>', body, re.S):
            args = re.findall(rf'<{DSML}parameter name="([^"]*)" string="(true|false)">(.*?)</{DSML}parameter>', m[2], re.S)
            calls.append({"name": m[1], "arguments": {k: v if s == "true" else json.loads(v) for k, s, v in args}})
        if not calls:
            raise ValueError("no call in the block")
    return {"reasoning_content": reasoning, "content": content, "tool_calls": calls}


if __name__ == "__main__":
    same = total = 0
    for line in open(sys.argv[1], encoding="utf-8"):
        case = json.loads(line)
        if case["kind"] != "encode" or "context" in case or any(m["role"] == "developer" for m in case["messages"]):
            continue
        got = encode(case["messages"], case["thinking_mode"] == "thinking", case.get("add_default_bos_token", True))
        total += 1
        same += got == case["prompt"]
        if got != case["prompt"]:
            print("differs:", case["id"], repr(got[-300:]), repr(case["prompt"][-300:]), sep="\n")
    print(f"{same} of {total} cases equal")
