"""The program through pipes: output shapes, exit statuses, messages."""

import json
import pathlib
import shutil
import subprocess
import unittest

from program import EMBER, STOKER, ProgramTest, has_ember, run

GREEDY = ["--greedy", "-n", "12"]
TOOLS = [{"type": "function", "function": {"name": "apt_show", "description": "Shows a package.",
          "parameters": {"type": "object", "properties": {"package": {"type": "string"}}}}}]


class Lines(ProgramTest):
    def test_tokenize_and_back(self):
        texts = ["hello", "", "Grüße 你好", "<think>x</think>", "a\nb"]
        ids = self.succeed("tokenize", self.model, stdin="".join(json.dumps(t) + "\n" for t in texts)).splitlines()
        self.assertEqual(json.loads(ids[0]), [16 + b for b in b"hello"])
        back = self.succeed("tokenize", self.model, "--decode", stdin="\n".join(ids))
        self.assertEqual([json.loads(line) for line in back.splitlines()], texts)

    def test_refused_lines_are_answered(self):
        out = self.succeed("tokenize", self.model, stdin=b'nonsense\n"\xff"\n[1]\n\n"ok"\n').splitlines()
        self.assertEqual(len(out), 5)
        self.assertTrue(all("error" in json.loads(line) for line in out[:4]))
        out = self.succeed("render", self.model, stdin='{}\n[]\n{"thinking_mode": "x", "messages": []}\n').splitlines()
        self.assertTrue(all("error" in json.loads(line) for line in out))
        self.assertEqual(len(out), 3)

    def test_render_and_parse(self):
        case = {"thinking_mode": "thinking", "messages": [{"role": "user", "content": "hi"}]}
        out = json.loads(self.succeed("render", self.model, stdin=json.dumps(case)))
        self.assertEqual(out, {"prompt": "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>"})
        case = {"thinking_mode": "thinking", "completion": "hm</think>Hello<｜end▁of▁sentence｜>"}
        out = json.loads(self.succeed("render", self.model, "--parse", stdin=json.dumps(case)))
        self.assertEqual(out["message"], {"role": "assistant", "content": "Hello", "reasoning_content": "hm",
                                          "tool_calls": []})

    def test_a_format_by_name_needs_no_files(self):
        empty = self.scratch / "empty"
        empty.mkdir()
        case = json.dumps({"thinking_mode": "chat", "messages": [{"role": "user", "content": "hi"}]})
        out = json.loads(self.succeed("render", empty, "--chat-format", "v3", stdin=case))
        self.assertEqual(out["prompt"], "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>")
        self.fail_with("has no tokenizer.json", "render", empty)

    def test_missing_files(self):
        self.fail_with("is not a directory", "tokenize", self.scratch / "nowhere")
        self.fail_with("is not a directory", "render", self.scratch / "nowhere", "--chat-format", "v3")

    def test_a_reader_that_goes_away_is_no_fault(self):
        process = subprocess.Popen([STOKER, "tokenize", self.model], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        process.stdout.close()
        try:
            process.stdin.write(b'"a"\n' * 1000)
            process.stdin.close()
        except BrokenPipeError:
            pass
        self.assertEqual(process.stderr.read(), b"")
        self.assertEqual(process.wait(30), 0)
        process.stderr.close()

    @unittest.skipUnless(pathlib.Path("/dev/full").exists(), "no /dev/full")
    def test_a_full_disk_is_said(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([STOKER, "tokenize", self.model], input=b'"a"', stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"cannot write to standard output", done.stderr)


class Generate(ProgramTest):
    def generate(self, *arguments, **named):
        return json.loads(self.succeed("generate", self.model, "--json", *arguments, **named))

    def test_json_shape(self):
        out = self.generate("--prompt", "hello", *GREEDY)
        self.assertEqual(list(out), ["text", "reasoning_content", "tool_calls", "prompt_tokens", "tokens",
                                     "finish_reason", "timings", "counters"])
        self.assertEqual(out["counters"]["expert_arithmetic"], "defined")
        self.assertEqual(list(out["timings"]), ["load_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"])
        self.assertEqual(out["prompt_tokens"], [0, 2, *[16 + b for b in b"hello"], 3, 5])
        self.assertIn(out["finish_reason"], ["stop", "length"])
        self.assertLessEqual(len(out["tokens"]), 12)

    def test_stats_shape(self):
        path = self.scratch / "counted.json"
        out = self.generate("--prompt", "hello", *GREEDY, "--stats", path)
        stats = json.loads(path.read_text())
        self.assertEqual(list(stats), ["tokens", "total", "expert_arithmetic"])
        self.assertEqual(sum(step["decode_rows"] for step in stats["tokens"]), out["counters"]["decode_tokens"])
        self.assertEqual(stats["expert_arithmetic"], "defined")

    def test_raw_adds_nothing(self):
        out = self.generate("--raw", "--prompt", "hello", *GREEDY)
        self.assertEqual(out["prompt_tokens"], [16 + b for b in b"hello"])
        self.fail_with("the prompt is empty", "generate", self.model, "--raw", "--prompt", "")

    def test_an_empty_message_is_one(self):
        self.assertEqual(self.generate("--prompt", "", *GREEDY)["prompt_tokens"], [0, 2, 3, 5])

    def test_the_same_whatever_the_threads_and_the_way_in(self):
        first = self.generate("--prompt", "hello", *GREEDY)["tokens"]
        file = self.write("prompt.txt", "hello")
        self.assertEqual(self.generate("--prompt-file", file, *GREEDY, "--threads", "1")["tokens"], first)
        self.assertEqual(self.generate("--prompt-file", "-", *GREEDY, stdin="hello")["tokens"], first)
        messages = self.write("messages.json", json.dumps([{"role": "user", "content": "hello"}]))
        self.assertEqual(self.generate("--messages", messages, *GREEDY, "--threads", "2")["tokens"], first)
        one = self.generate("--prompt", "hello", "--seed", "7", "-n", "12")["tokens"]
        self.assertEqual(self.generate("--prompt", "hello", "--seed", "7", "-n", "12")["tokens"], one)

    def test_system_tools_and_thinking_reach_the_prompt(self):
        def prompt(*arguments):
            ids = self.generate("--prompt", "hi", *GREEDY, *arguments)["prompt_tokens"]
            return json.loads(self.succeed("tokenize", self.model, "--decode", stdin=json.dumps(ids)))
        self.assertIn("Be terse.<｜User｜>hi", prompt("--system", "Be terse."))
        self.assertTrue(prompt("--thinking", "on").endswith("<｜Assistant｜><think>"))
        self.assertIn('{"name": "apt_show"', prompt("--tools", self.write("tools.json", json.dumps(TOOLS))))

    def test_eos_ends_it(self):
        out = self.generate("--prompt", "hello", "--greedy", "--logit-bias", "1=100")
        self.assertEqual((out["tokens"], out["finish_reason"], out["text"]), ([1], "stop", ""))
        self.assertEqual(self.succeed("generate", self.model, "--prompt", "hello", "--greedy", "--logit-bias", "1=100"),
                         "\n")

    def test_the_context_is_a_limit(self):
        out = self.generate("--prompt", "hello", "--greedy", "--ctx", "16", "--logit-bias", "1=-100")
        self.assertEqual(out["finish_reason"], "length")
        self.assertEqual(len(out["prompt_tokens"]) + len(out["tokens"]), 17)
        self.fail_with("the prompt has 9 tokens, the context holds 4; start with a larger --ctx",
                       "generate", self.model, "--prompt", "hello", "--ctx", "4")
        self.fail_with("the context holds 4096, and the model no more", "generate", self.model, "--prompt-file", "-",
                       "--ctx", "10000", stdin="x" * 5000)

    def test_what_is_refused(self):
        ask = ["generate", self.model, "--prompt", "hi"]
        self.fail_with("names token 5000", *ask, "--logit-bias", "5000=1")
        self.fail_with("cannot open", "generate", self.model, "--prompt-file", "/no/such/file")
        self.fail_with("tools", *ask, "--chat-format", "v3", "--tools", self.write("t.json", json.dumps(TOOLS)))
        self.fail_with("is no function with a name", *ask, "--tools", self.write("bad.json", "[1]"))
        self.fail_with("is not a directory", "generate", "/no/such/model", "--prompt", "hi")

    def test_wrong_usage(self):
        for arguments in (["generate"], ["generate", "--prompt", "a", "--prompt-file", "b"],
                          ["generate", "--prompt", "a", "--greedy", "--temperature", "1"],
                          ["generate", "--prompt", "a", "--thinking", "maybe"], ["generate", "--prompt", "a", "-n", "0"],
                          ["chat", "--logit-bias", "5"], ["render"], ["nonsense"], []):
            self.assertEqual(run(*arguments)[0], 2, arguments)

    def test_flags_that_do_not_go_together(self):
        stats = self.write("stats.json", "kept")
        ask = ["generate", self.model, "--prompt", "hi", "--stats", stats]
        for backend in ("cpu", "reference"):
            for flag in (["--vram", "1GiB"], ["--devices", "0"], ["--expert-site", "host"],
                         ["--expert-arithmetic", "fast"]):
                self.fail_with(f"{flag[0]} is for --backend cuda", *ask, "--backend", backend, *flag, expected=2)
        self.fail_with("fast is for BF16 activations", *ask, "--expert-arithmetic", "fast", "--activations", "f32",
                       expected=2)
        self.fail_with("--devices names 17; 16 are the most", *ask, "--devices", ",".join(["0"] * 17), expected=2)
        self.fail_with("leave --kv-cache fp8 out", *ask, "--backend", "reference", "--kv-cache", "fp8", expected=2)
        self.fail_with("--ram: \"much\" is not a size", *ask, "--ram", "much", expected=2)
        self.fail_with("--vram: \"much\" is not a size", *ask, "--vram", "much", expected=2)
        self.fail_with("top_p is 0", *ask, "--top-p", "0", expected=2)
        self.assertEqual(stats.read_text(), "kept")
        self.fail_with("--tokens FILE or --text FILE", "eval", self.model, expected=2)
        self.fail_with("one at a time", "bench", self.model, "--compare-sites", "--compare-prefetch", expected=2)
        self.fail_with("--compare-sites is for --backend cuda", "bench", self.model, "--backend", "cpu",
                       "--compare-sites", expected=2)
        self.fail_with("give --trace FILE", "simulate", self.model, expected=2)
        self.fail_with("--prefill 9 of --tokens 8", "simulate", self.model, "--make-trace", self.scratch / "trace",
                       "--tokens", "8", "--prefill", "9", expected=2)

    def test_lists_leave_the_model_alone(self):
        def message(*arguments):
            status, _, err = run("generate", "--prompt", "hi", "--backend", "cpu", *arguments)
            self.assertNotEqual(status, 0)
            return err
        for lists in (["--devices", "0"], ["--devices", "0,1"], ["--devices", "0", "--devices", "1"]):
            self.assertIn("--devices is for --backend cuda", message(*lists, self.model))
            self.assertIn("/no/such/model is not a directory", message(*lists, "/no/such/model"))
        for lists in (["--store", "/no/a"], ["--store", "/no/a,/no/b"], ["--store", "/no/a", "--store", "/no/b"]):
            self.assertIn(f"{self.model} is a published checkpoint", message(*lists, self.model))
            self.assertIn("/no/such/model is not a directory", message(*lists, "/no/such/model"))

    def test_numbers_of_gpus(self):
        for number in ("-1", "0.5", "1024", "99999999999", "x", "0,x"):
            self.fail_with("is not the number of a GPU: a whole number from 0 to 1023", "generate", "--devices", number,
                           "--prompt", "hi", self.model, expected=2)

    def test_damaged_models(self):
        broken = self.scratch / "broken"
        shutil.copytree(self.model, broken)
        shard = next(broken.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-100])
        self.fail_with(shard.name, "generate", broken, "--prompt", "hi")
        (broken / "tokenizer.json").unlink()
        self.fail_with("has no tokenizer.json", "generate", broken, "--prompt", "hi")
        (broken / "config.json").write_text("{")
        self.fail_with("config.json", "generate", broken, "--prompt", "hi")


class Chat(ProgramTest):
    def test_a_line_in_an_answer_out(self):
        bias = ["--logit-bias", "1=100"]  # every answer is empty
        self.assertEqual(self.succeed("chat", self.model, "--greedy", *bias, stdin="one\n\ntwo\nthree"), "\n\n\n")

    def test_turns_build_on_each_other(self):
        first = self.succeed("chat", self.model, *GREEDY, stdin="hello\n")
        self.assertTrue(self.succeed("chat", self.model, *GREEDY, stdin="hello\nmore\n").startswith(first))
        self.assertEqual(self.succeed("generate", self.model, "--prompt", "hello", *GREEDY), first)

    def test_a_full_context_is_said_and_the_rest_goes_on(self):
        out = self.fail_with("the context holds 16", "chat", self.model, "--greedy", "--logit-bias", "1=100", "--ctx",
                             "16", stdin="hello\nworld\nmore\n")
        self.assertEqual(out, "\n\n\n")

    def test_settings_the_format_lacks(self):
        self.fail_with("--thinking on", "chat", self.model, "--chat-format", "v3", "--thinking", "on")


class Inspect(ProgramTest):
    def test_model(self):
        out = json.loads(self.succeed("inspect", self.model, "--json"))["model"]
        self.assertEqual(out["config"]["n_routed_experts"], 12)
        self.assertEqual(sum(v for k, v in out["bytes"].items() if k != "total"), out["bytes"]["total"])
        self.assertGreater(out["per_token"]["weights_read_bytes"], out["per_token"]["expert_bytes"])
        self.assertIn("routed", self.succeed("inspect", self.model))

    def test_machine(self):
        out = json.loads(self.succeed("inspect", "--machine", "--json"))
        self.assertEqual(list(out), ["machine"])
        self.assertGreaterEqual(out["machine"]["cores"], 1)
        self.assertIn(out["machine"]["isa_chosen"], out["machine"]["isas"])
        text = self.succeed("inspect", "--machine")
        self.assertIn("instructions", text)
        gpus = out["machine"]["gpus"]
        self.assertEqual([gpu["index"] for gpu in gpus], list(range(len(gpus))))
        for gpu in gpus:
            self.assertIn(f"GPU {gpu['index']}", text)

    def test_help_says_how_gpus_are_numbered(self):
        text = " ".join(self.succeed("generate", "--help").split())
        self.assertIn("numbered as `inspect --machine` lists them (default: all, at most 16, that can be used", text)

    def test_help_of_every_command(self):
        for command in ["chat", "generate", "tokenize", "render", "eval", "inspect"]:
            self.assertIn("Usage: stoker " + command, self.succeed(command, "--help"))


@has_ember
class Ember(unittest.TestCase):
    def test_it_answers(self):
        status, out, _ = run("generate", EMBER, "--prompt", "What is ffmpeg?", "--greedy", "-n", "100")
        self.assertEqual(status, 0)
        self.assertIn("ffmpeg", out)
        status, out, err = run("chat", EMBER, "--greedy", stdin="What is curl?\nAnd how do I install it?\n")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("install curl", out)

    def test_it_thinks(self):
        status, out, _ = run("generate", EMBER, "--prompt", "What is curl?", "--greedy", "--thinking", "on", "--json")
        self.assertEqual(status, 0)
        self.assertNotIn("think>", out)
        self.assertTrue(json.loads(out)["reasoning_content"])


if __name__ == "__main__":
    unittest.main()
