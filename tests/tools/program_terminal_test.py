"""The chat in a pseudo terminal: editing, paste, history, Ctrl-C."""

import time
import unittest

from terminal import CTRL_C, UP, ChatTest


class Chat(ChatTest):
    def test_turns_commands_and_leaving(self):
        terminal = self.start(self.model, "-n", "4")
        self.ask(terminal, "Grüße\r".encode())
        terminal.send(b"/help\r")
        terminal.wait_for(b"/think on|off")
        terminal.wait_for(self.PROMPT)
        terminal.send(b"/think on\r")
        terminal.wait_for(b"thinking is on")
        terminal.wait_for(self.PROMPT)
        self.assertEqual(self.saved(terminal)[0], {"role": "user", "content": "Grüße"})
        terminal.send(b"/quit\r")
        self.assertEqual(terminal.wait_for_end(), 0)

    def test_several_lines(self):
        terminal = self.start(self.model, "-n", "2")
        terminal.send(b"one\\\r")
        terminal.wait_for(b"... ")
        self.ask(terminal, b"two\r")
        self.ask(terminal, "\x1b[200~a\r\n\tb é\n/c\n\x1b[201~d\r".encode())
        contents = [m["content"] for m in self.saved(terminal) if m["role"] == "user"]
        self.assertEqual(contents[0], "one\ntwo")
        self.assertIn(contents[1], ["a\n\n\tb é\n/cd", "a\n\tb é\n/cd"])
        self.leave(terminal)

    def test_history_lasts(self):
        terminal = self.start(self.model, "-n", "2")
        self.ask(terminal, b"remember me\r")
        self.leave(terminal)
        self.assertTrue((self.scratch / ".local/state/stoker/history").exists())
        terminal = self.start(self.model, "-n", "2")
        self.ask(terminal, UP + b"!\r")
        self.assertEqual(self.saved(terminal)[0]["content"], "remember me!")
        self.leave(terminal)

    def test_ctrl_c_stops_the_answer_not_the_program(self):
        terminal = self.start(self.model, "--logit-bias", "1=-100", "--backend", "reference")  # never ends by itself
        terminal.send(b"go\r")
        terminal.wait_for(b"go\r\n")
        time.sleep(0.3)
        terminal.send(CTRL_C)
        terminal.wait_for(b"stopped; ")
        terminal.wait_for(self.PROMPT)
        terminal.send(b"half a line" + CTRL_C)
        terminal.wait_for(b"^C")
        terminal.wait_for(self.PROMPT)
        terminal.send(CTRL_C)
        terminal.wait_for(b"Ctrl-C again")
        terminal.wait_for(self.PROMPT)
        terminal.send(CTRL_C)
        self.assertEqual(terminal.wait_for_end(), 0)

    def test_a_full_context_leaves_a_usable_chat(self):
        terminal = self.start(self.model, "--ctx", "32", "--logit-bias", "1=-100")
        terminal.send(b"hello\r")
        terminal.wait_for(b"cut off at the limit")
        terminal.wait_for(self.PROMPT)
        terminal.send(b"more\r")
        terminal.wait_for(b"the context holds 32")
        terminal.wait_for(self.PROMPT)
        terminal.send(b"/reset\r")
        terminal.wait_for(b"new conversation")
        terminal.wait_for(self.PROMPT)
        terminal.send(b"hello\r")
        terminal.wait_for(b"cut off at the limit")
        terminal.wait_for(self.PROMPT)
        self.leave(terminal)


if __name__ == "__main__":
    unittest.main()
