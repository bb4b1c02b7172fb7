"""pack, verify, inspect and synth, and models run from stores."""

import json
import pathlib
import shutil
import unittest

from program import ProgramTest, run

try:
    import safetensors
    import safetensors.numpy
except ImportError:
    safetensors = None

V32_CONFIG = pathlib.Path(__file__).parent.parent / "data" / "deepseek_v32_config.json"


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def flip(path, offset, mask=1):
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


class Store(ProgramTest):
    def pack(self, name, *arguments):
        out = self.scratch / name
        shutil.rmtree(out, ignore_errors=True)
        self.assertEqual(self.succeed("pack", self.model, "--out", out, *arguments), "")
        return out

    def test_every_format_packs_and_verifies(self):
        for form, name in [("fp8", "fp8_e4m3_b128"), ("int8", "int8_g128"), ("int4", "int4_g64"),
                           ("stored", "fp8_e4m3_b128")]:
            store = self.pack("store-" + form, "--experts", form, "--files", "2")
            self.assertIn("all good", self.succeed("verify", store))
            report = json.loads(self.succeed("inspect", store, "--json"))["model"]
            self.assertTrue(report["packed"])
            self.assertEqual(report["packed_from"], self.model.name)
            self.assertEqual(report["experts"]["format"], name)
            self.assertEqual(report["experts"]["slot_bytes"], sum(report["experts"]["block_bytes"]))
            self.assertEqual(report["files"], 3)
            self.assertEqual([file["copy"] for file in report["expert_files"]], [0, 0])
        self.assertEqual(contents(self.scratch / "store-fp8"), contents(self.scratch / "store-stored"))

    def test_groups(self):
        for group in ["32", "64", "128"]:
            store = self.pack("group", "--experts", "int4", "--group", group)
            report = json.loads(self.succeed("inspect", store, "--json"))["model"]
            self.assertEqual(report["experts"]["format"], "int4_g" + group)
        out = self.scratch / "none"
        self.fail_with("int8 has no --group 64", "pack", self.model, "--out", out, "--experts", "int8", "--group", "64",
                       expected=2)
        self.fail_with("--group", "pack", self.model, "--out", out, "--experts", "fp8", "--group", "64", expected=2)
        self.fail_with("--group", "pack", self.model, "--out", out, "--experts", "stored", "--group", "64",
                       expected=2)
        self.fail_with("--group", "pack", self.model, "--out", out, "--group", "48", expected=2)
        self.fail_with("--experts", "pack", self.model, "--out", out, "--experts", "fp4", expected=2)
        self.assertFalse(out.exists())

    def test_a_packed_fp8_model_gives_the_same_bits(self):
        tokens = self.write("tokens.json", json.dumps([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]))
        store = self.pack("bits", "--files", "3")
        logits = []
        for model in [self.model, store]:
            out = self.scratch / "logits.npy"
            self.assertEqual(run("eval", model, "--tokens", tokens, "--logits", out)[0], 0)
            logits.append(out.read_bytes())
        self.assertEqual(logits[0], logits[1])

    def test_refusals(self):
        store = self.pack("refuse")
        self.fail_with("is there already", "pack", self.model, "--out", store)
        self.fail_with("is a packed store", "pack", store, "--out", self.scratch / "again")
        self.fail_with("is no packed store", "verify", self.model)
        self.fail_with("13 expert files are too many", "pack", self.model, "--out", self.scratch / "x", "--files", "13")
        self.fail_with("cannot create", "pack", self.model, "--out", store / "config.json" / "x")
        self.fail_with("CHECKPOINT", "pack", "--out", store, expected=2)
        unfinished = self.scratch / "unfinished.partial"
        unfinished.mkdir()
        (unfinished / "pack.journal").write_text("stoker-pack 1 " + 32 * "0" + " int4_g64 experts from other\n")
        shutil.copy(self.model / "config.json", unfinished)
        self.fail_with("is an unfinished store", "inspect", unfinished)
        self.fail_with("was begun as: int4_g64 experts from other", "pack", self.model, "--out",
                       self.scratch / "unfinished")

    def test_verify_lists_what_is_bad(self):
        store = self.pack("bad", "--files", "2")
        name = store / "experts-001.safetensors"
        flip(name, 5000)
        flip(store / "tokenizer.json", 0)
        (store / "notes.txt").write_text("mine")
        status, out, err = run("verify", store)
        self.assertEqual((status, err), (1, ""))
        lines = out.splitlines()
        self.assertRegex(lines[0], r"experts-001.safetensors: bytes 4096 to \d+: model.layers.1.mlp.experts.0, block 0: "
                         r"has checksum [0-9a-f]{16}, expected [0-9a-f]{16}")
        self.assertRegex(lines[1], r"tokenizer.json: has hash [0-9a-f]{32}, expected [0-9a-f]{32}")
        self.assertIn("notes.txt: is no part of the store", lines[2])
        self.assertIn("2 bad", lines[3])
        status, out, err = run("verify", store, "--json")
        report = json.loads(out)
        self.assertEqual((status, report["good"], len(report["bad"])), (1, False, 2))
        self.assertEqual(report["bad"][0]["file"], str(name))
        self.assertEqual(report["bad"][0]["offset"], 4096)
        self.assertEqual(report["unknown"], [str(store / "notes.txt")])

    def test_files_in_other_directories(self):
        store = self.pack("spread", "--files", "2")
        dirs = [self.scratch / "drive-a", self.scratch / "drive-b"]
        for drive in dirs:
            drive.mkdir()
        shutil.copy(store / "experts-000.safetensors", dirs[0])
        shutil.copy(store / "experts-001.safetensors", dirs[0])
        shutil.move(store / "experts-000.safetensors", dirs[1])
        (store / "experts-001.safetensors").unlink()
        places = ",".join(map(str, dirs))
        self.fail_with("experts-000.safetensors is not in", "inspect", store)
        report = json.loads(self.succeed("inspect", store, "--store", places, "--json"))["model"]
        self.assertEqual([(pathlib.Path(f["path"]).parent, f["copy"]) for f in report["expert_files"]],
                         [(dirs[0], 0), (dirs[1], 1), (dirs[0], 0)])
        self.assertEqual(json.loads(self.succeed("inspect", "--store", places, store, "--json"))["model"], report)
        self.assertIn("all good", self.succeed("verify", store, "--store", places))
        self.assertIn("all good", self.succeed("verify", "--store", places, store))
        self.fail_with("is not a directory", "inspect", store, "--store", self.scratch / "drive-c")

    def test_synth(self):
        config = self.write("small.json", json.dumps({
            **json.loads(V32_CONFIG.read_text()), "hidden_size": 256, "intermediate_size": 256,
            "moe_intermediate_size": 128, "n_routed_experts": 16, "num_attention_heads": 2, "q_lora_rank": 64,
            "kv_lora_rank": 64, "index_n_heads": 2, "index_topk": 64}))
        store = self.scratch / "synth"
        self.succeed("synth", "--config", config, "--layers", "2", "--out", store, "--vocab", "500", "--files", "4")
        self.assertIn("all good", self.succeed("verify", store))
        report = json.loads(self.succeed("inspect", store, "--json"))["model"]
        self.assertEqual(report["config"]["num_hidden_layers"], 3)
        self.assertEqual(report["config"]["vocab_size"], 500)
        self.assertEqual(report["experts"]["format"], "int4_g64")
        self.assertEqual(len(report["expert_files"]), 4)
        tokens = self.write("synth-tokens.json", json.dumps(list(range(7, 500, 11))))
        out = self.scratch / "synth-logits.npy"
        self.assertEqual(run("eval", store, "--tokens", tokens, "--logits", out)[0], 0)
        self.check_logits(out.read_bytes(), 500)
        self.fail_with("is there already", "synth", "--config", config, "--layers", "2", "--out", store)
        self.fail_with("cannot open", "synth", "--config", self.scratch / "none.json", "--layers", "1", "--out",
                       self.scratch / "s")
        self.fail_with("--layers", "synth", "--config", config, "--out", store, expected=2)

    def check_logits(self, npy, vocab):
        """Finite, and neither all alike nor wild."""
        import array
        values = array.array("f", npy[-4 * vocab * 10:])
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        self.assertTrue(0.1 < variance ** 0.5 < 20, variance)

    @unittest.skipIf(safetensors is None, "the Python package safetensors is not installed")
    def test_python_reads_the_files(self):
        store = self.pack("python", "--experts", "int8", "--files", "2")
        seen = set()
        for path in sorted(store.glob("*.safetensors")):
            data = path.read_bytes()
            begin = 8 + int.from_bytes(data[:8], "little")
            self.assertEqual(begin % 4096, 0)
            with safetensors.safe_open(path, "numpy") as file:
                names = set(file.keys())
            tensors = safetensors.numpy.load_file(path) if path.name != "dense.safetensors" else {}
            self.assertIn("block_checksums", names)
            for name, tensor in tensors.items():
                self.assertEqual(str(tensor.dtype), "uint8", name)
                if name != "block_checksums":
                    self.assertEqual(tensor.nbytes % 4096, 0, name)
            seen |= names
        self.assertIn("model.layers.3.mlp.experts.11", seen)
        self.assertIn("model.layers.2.self_attn.o_proj.weight", seen)

    def test_help_is_complete(self):
        for command, flags in [("pack", ["--out", "--experts", "--group", "--files"]), ("verify", ["--store", "--json"]),
                               ("synth", ["--config", "--layers", "--out", "--experts", "--group", "--vocab", "--seed",
                                          "--files"]), ("inspect", ["--store", "--machine", "--json"])]:
            text = self.succeed(command, "--help")
            for flag in flags:
                self.assertIn(flag, text, command)


if __name__ == "__main__":
    unittest.main()
