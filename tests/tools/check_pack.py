"""What packing promises when things go wrong: check_pack.py STOKER EMBER

Killed at 50 random moments, it goes on to the identical store; on a drive without room it stops with a message and goes
on when there is some. Standard library only.
"""

import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

STOKER, EMBER = sys.argv[1], pathlib.Path(sys.argv[2])
KILLS = 50
PACK = [STOKER, "pack", str(EMBER), "--experts", "int4", "--files", "2"]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def pack(out, **options):
    return subprocess.run([*PACK, "--out", str(out)], capture_output=True, text=True, timeout=120, **options)


def check_kills(scratch):
    seconds = 1e9
    for _ in range(3):
        shutil.rmtree(scratch / "whole", ignore_errors=True)
        start = time.monotonic()
        assert pack(scratch / "whole").returncode == 0
        seconds = min(seconds, time.monotonic() - start)
    expected = contents(scratch / "whole")
    moments = random.Random(7)
    resumed = finished = 0
    for kill in range(KILLS):
        out = scratch / f"kill-{kill}"
        partial = scratch / f"kill-{kill}.partial"
        for _ in range(1 + kill % 3):  # some are killed more than once
            process = subprocess.Popen([*PACK, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(moments.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if out.exists():  # it was faster than the kill: complete, or it would not be there
                assert contents(out) == expected, f"kill {kill}: published an incomplete store"
                finished += 1
                shutil.rmtree(out)
            if partial.exists() and (partial / "pack.journal").exists():
                resumed += len((partial / "pack.journal").read_text().splitlines()) > 1
        done = pack(out)
        assert done.returncode == 0, f"kill {kill}: {done.stderr}"
        assert contents(out) == expected, f"kill {kill}: another store"
        assert not partial.exists()
        shutil.rmtree(out)
    print(f"{KILLS} kills: {resumed} left something to go on with, {finished} came too late")
    assert resumed >= KILLS // 4, "the kills hit nothing worth testing"


FULL = """
import pathlib, subprocess, sys
drive = pathlib.Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", drive], check=True)
pack = sys.argv[2:] + ["--out", str(drive / "store")]
# 1. No room from the start: said before anything is written.
done = subprocess.run(pack, capture_output=True, text=True)
assert done.returncode == 1 and "free on its drive" in done.stderr, done
# 2. A larger drive, but something else has taken the room.
subprocess.run(["mount", "-o", "remount,size=60m", drive], check=True)
filler = drive / "filler"
filler.write_bytes(bytes(44 << 20))
done = subprocess.run(pack, capture_output=True, text=True)
assert done.returncode == 1 and "free on its drive" in done.stderr, done
filler.unlink()
# 3. Room again.
done = subprocess.run(pack, capture_output=True, text=True)
assert done.returncode == 0, done
assert (drive / "store" / "manifest.json").exists()
"""


def check_full_drive(scratch):
    drive = scratch / "drive"
    drive.mkdir()
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0:
        print("full drive: not run, no name spaces here")
        return
    done = subprocess.run(["unshare", "-Urm", sys.executable, "-c", FULL, drive, *PACK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print("full drive: said, and finished when there was room")


def check_file_limit(scratch):
    """A limit on the size of files, which the system enforces in the middle of the work."""
    out = scratch / "limited"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, resource.RLIM_INFINITY))

    done = pack(out, preexec_fn=limit)
    assert done.returncode == 1 and "run the same command again" in done.stderr, done
    assert not out.exists()
    assert pack(out).returncode == 0
    assert contents(out) == contents(scratch / "whole")
    print("file limit: said, and finished without it")


def main():
    if not (EMBER / "config.json").exists():
        sys.exit(77)
    with tempfile.TemporaryDirectory() as directory:
        scratch = pathlib.Path(directory)
        check_kills(scratch)
        check_full_drive(scratch)
        check_file_limit(scratch)


if __name__ == "__main__":
    main()
