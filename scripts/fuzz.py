"""Try anything for a while: ``fuzz.py MINUTES``.

First everything once as in ``make test``, which tells how long that takes, then as much more as fits into the time that
is left. Each round says the seed that repeats it. Exit code 1 at the first failure.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

TESTS = ("tests/fuzz", "tests/security/test_races.py", "tests/security/test_escape.py")
#: Seconds that a test may take, times the scale.
PATIENCE = 240


def fuzz(scale: int, seed: int) -> bool:
    """One round of *scale* times what ``make test`` tries; whether all went well."""
    print(f"--- {scale} times; again with WSFUSE_FUZZ={scale} WSFUSE_FUZZ_SEED={seed}", flush=True)
    command = [
        sys.executable, "-m", "pytest", "--quiet", "--exitfirst", "-p", "no:cacheprovider",
        f"--timeout={PATIENCE * scale}", f"--hypothesis-seed={seed}", *TESTS,
    ]  # fmt: skip
    environment = {**os.environ, "WSFUSE_FUZZ": str(scale), "WSFUSE_FUZZ_SEED": str(seed)}
    return subprocess.run(command, env=environment, check=False).returncode == 0


def main() -> int:
    """Rounds until the time is over."""
    try:
        minutes = float(sys.argv[1])
    except (IndexError, ValueError):
        print("usage: fuzz.py MINUTES", file=sys.stderr)
        return 2
    chance = random.SystemRandom()
    started = time.monotonic()
    scale = tried = 1
    while True:
        before = time.monotonic()
        if not fuzz(scale, chance.randrange(1 << 32)):
            return 1
        now = time.monotonic()
        once = (now - before) / scale
        scale = min(100, round((started + 60 * minutes - now) / once))
        if scale < 1:
            print(
                f"nothing found in {(now - started) / 60:.1f} minutes, {tried} times what `make test` tries"
            )
            return 0
        tried += scale


if __name__ == "__main__":
    sys.exit(main())
