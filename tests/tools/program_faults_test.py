"""Stores that change while a chat runs from them: cut short, overwritten, replaced, taken away."""

import os
import shutil
import time
import unittest

from terminal import CTRL_C, ChatTest

RAM = "98304"  # four experts of 24: nearly all is read again for every token


class Faults(ChatTest):
    """A chat with a store whose files the test may damage; what it says, and that it goes on."""

    WAYS = [("uring", "on"), ("pread", "on"), ("pread", "off")]

    def setUp(self):
        self.store = self.scratch / "store"
        shutil.rmtree(self.store, ignore_errors=True)
        self.succeed("pack", self.model, "--out", self.store, "--experts", "int8", "--files", "2")
        self.good = {path: path.read_bytes() for path in self.store.glob("experts-*")}

    def start(self, *arguments):
        return super().start(self.store, "--logit-bias", "1=-100", "--ram", RAM, *arguments)

    def ask_in_vain(self, terminal, text):
        """Asks; returns what the chat says instead of an answer."""
        terminal.send(text.encode() + b"\r")
        terminal.wait_for(b"stoker: ")
        said = terminal.wait_for(b"\n").decode()
        terminal.wait_for(self.PROMPT)
        return said

    def restore(self):
        for path, data in self.good.items():
            path.write_bytes(data)

    def undisturbed(self):
        """The conversation that every test below has, without a fault."""
        terminal = self.start("-n", "6")
        self.ask(terminal, b"one\r")
        self.ask(terminal, b"two\r")
        messages = self.saved(terminal)
        self.leave(terminal)
        return messages

    def check_fault(self, damage, *messages, ways=WAYS):
        """A turn, a turn that fails because of `damage`, and the same turn once all is well again."""
        expected = self.undisturbed()
        for io, direct in ways:
            with self.subTest(io=io, direct=direct):
                terminal = self.start("-n", "6", "--io", io, "--direct", direct)
                self.ask(terminal, b"one\r")
                before = self.saved(terminal)
                damage()
                said = self.ask_in_vain(terminal, "two")
                for message in messages:
                    self.assertRegex(said, message)
                self.restore()
                self.assertEqual(self.saved(terminal), before)
                self.ask(terminal, b"two\r")
                self.assertEqual(self.saved(terminal), expected)
                self.leave(terminal)

    def test_a_file_cut_short(self):
        def damage():
            for path in self.good:
                os.truncate(path, 8192)
        self.check_fault(damage, r"expert \d+ of layer \d+", r"experts-00[01]\.safetensors")

    def test_a_file_overwritten(self):
        def damage():
            for path, data in self.good.items():
                path.write_bytes(data[:4096] + bytes(byte ^ 0x10 for byte in data[4096:]))
        self.check_fault(damage, r"expert \d+ of layer \d+", r"experts-00[01]\.safetensors", "checksum")

    def test_a_store_replaced_or_removed(self):
        """What was opened stays open: the answer is that of the old files."""
        expected = self.undisturbed()
        for replace in [True, False]:
            with self.subTest(replace=replace):
                terminal = self.start("-n", "6")
                self.ask(terminal, b"one\r")
                for path, data in self.good.items():
                    path.unlink()
                    if replace:
                        path.write_bytes(bytes(byte ^ 0x10 for byte in data))
                self.ask(terminal, b"two\r")
                self.assertEqual(self.saved(terminal), expected)
                self.leave(terminal)
                self.restore()

    def test_a_mirror_serves_what_is_lost(self):
        expected = self.undisturbed()
        mirror = self.scratch / "mirror"
        mirror.mkdir()
        for path in self.good:
            shutil.copy(path, mirror)
        terminal = self.start("-n", "6", "--store", f"{self.store},{mirror}")
        self.ask(terminal, b"one\r")
        for path in self.good:
            os.truncate(path, 8192)
        terminal.send(b"two\r")
        terminal.wait_for(b"was repaired from another copy")
        terminal.wait_for(b"; context ")
        terminal.wait_for(self.PROMPT)
        self.assertEqual(self.saved(terminal), expected)
        self.leave(terminal)

    def test_ctrl_c_while_experts_are_read(self):
        expected = self.undisturbed()
        terminal = self.start("--ctx", "4096")
        for _ in range(3):
            terminal.send(b"go\r")
            terminal.wait_for(b"go\r\n")
            time.sleep(0.3)
            terminal.send(CTRL_C)
            terminal.wait_for(b"stopped; ")
            terminal.wait_for(self.PROMPT)
            terminal.send(b"/reset\r")
            terminal.wait_for(b"new conversation")
            terminal.wait_for(self.PROMPT)
        self.leave(terminal)
        self.assertEqual(self.undisturbed(), expected)


if __name__ == "__main__":
    unittest.main()
