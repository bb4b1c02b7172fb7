"""A program on a pseudo terminal, as a user has it before them, and a chat on it."""

import json
import os
import pty
import select
import signal
import time

from program import STOKER, ProgramTest

CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"


class Terminal:
    """A program on a pseudo terminal of its own."""

    def __init__(self, arguments, home):
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.environ.update(HOME=str(home), TERM="xterm", LC_ALL="C.UTF-8", XDG_STATE_HOME="")
            os.execv(STOKER, [STOKER, *map(str, arguments)])
        self.seen = b""

    def send(self, keys):
        os.write(self.screen, keys)

    def wait_for(self, text, seconds=60):
        """Waits until `text` appears after what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            if not select.select([self.screen], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not come; seen: {self.seen!r}")
            try:
                self.seen += os.read(self.screen, 65536)
            except OSError:  # the program ended
                raise AssertionError(f"the program ended before {text!r}; seen: {self.seen!r}") from None
        before, self.seen = self.seen.split(text, 1)
        return before

    def wait_for_end(self, seconds=60):
        """Reads until the program ends; returns its exit status."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.screen, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.screen)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"the program did not end; seen: {self.seen!r}")


class ChatTest(ProgramTest):
    """A greedy chat in a terminal."""

    PROMPT = b"> "

    def start(self, model, *arguments):
        terminal = Terminal(["chat", model, "--greedy", *arguments], self.scratch)
        terminal.wait_for(b"/help lists the commands")
        terminal.wait_for(self.PROMPT)
        return terminal

    def leave(self, terminal):
        terminal.send(CTRL_D)
        self.assertEqual(terminal.wait_for_end(), 0)

    def saved(self, terminal):
        """The conversation so far."""
        file = self.scratch / "saved.json"
        terminal.send(f"/save {file}\r".encode())
        terminal.wait_for(b"saved ")
        terminal.wait_for(self.PROMPT)
        return json.loads(file.read_text(encoding="utf-8"))["messages"]

    def ask(self, terminal, keys):
        terminal.send(keys)
        terminal.wait_for(b"; context ")
        terminal.wait_for(self.PROMPT)
