"""What the tests of the built program share. Standard library only."""

import os
import pathlib
import subprocess
import tempfile
import unittest

STOKER = os.environ["STOKER"]
EMBER = pathlib.Path(os.environ["EMBER"])
has_ember = unittest.skipUnless((EMBER / "config.json").exists(), "models/ember is not there")


def run(*arguments, stdin=""):
    """Runs stoker; returns (exit status, standard output, standard error)."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run([STOKER, *map(str, arguments)], input=data, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class ProgramTest(unittest.TestCase):
    """A directory with a tiny random model, made once per class."""

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.scratch = pathlib.Path(cls.directory.name)
        cls.model = cls.scratch / "tiny"
        subprocess.run([os.environ["MAKE_TINY_MODEL"], cls.model], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def write(self, name, text):
        path = self.scratch / name
        path.write_text(text, encoding="utf-8")
        return path

    def succeed(self, *arguments, stdin=""):
        """Runs stoker, which must succeed in silence; returns standard output."""
        status, out, err = run(*arguments, stdin=stdin)
        self.assertEqual((status, err), (0, ""), arguments)
        return out

    def fail_with(self, message, *arguments, stdin="", expected=1):
        """Runs stoker, which must end with status `expected`, saying `message`."""
        status, out, err = run(*arguments, stdin=stdin)
        self.assertEqual(status, expected, err)
        self.assertIn(message, err)
        return out
