"""How much is tried by tests that try anything: a little in every run, more in ``make fuzz``."""

from __future__ import annotations

import os
import random
from typing import Any

from hypothesis import HealthCheck, settings

#: A multiple of what is tried otherwise.
SCALE = int(os.environ.get("WSFUSE_FUZZ", "1"))
#: Of the tests that choose at random by themselves; hypothesis says its own.
SEED = int(os.environ.get("WSFUSE_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))


def examples(count: int, **options: Any) -> settings:
    """Hypothesis settings for *count* examples times :data:`SCALE`, without a deadline for each."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count * SCALE,
        deadline=None,
        database=None,
        suppress_health_check=health,
        print_blob=True,
        **options,
    )


def chance(what: str) -> random.Random:
    """Random numbers for the test *what*; a failure shows the seed."""
    print(f"WSFUSE_FUZZ_SEED={SEED}")  # shown by pytest if the test fails
    return random.Random(f"{SEED} {what}")
