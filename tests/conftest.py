"""What every test may use. No test reaches the network; those that need the large shared data skip without it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# The same examples each time: a run of the suite can be repeated. DEPTHUP_FUZZ=1 draws new ones.
hypothesis.settings.register_profile("depthup", derandomize=os.environ.get("DEPTHUP_FUZZ") != "1")
hypothesis.settings.load_profile("depthup")

# A suite that a shell started in the background ignores Ctrl-C, and so would the programs that tests stop with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SHARED_DATA = Path(os.environ.get("DEPTHUP_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``base("llama", num_layers=7, ...)``: a tiny checkpoint, made once a session; tests leave it alone."""
    import pico

    root, made = tmp_path_factory.mktemp("bases"), {}

    def build(family: str = "llama", **options: object) -> Path:
        key = (family, repr(sorted(options.items())))
        if key not in made:
            made[key] = pico.checkpoint(root / f"{family}-{len(made)}", family, **options)
        return made[key]

    return build


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """``shared_data("gsm8k")``: a path in the project's shared data; the test skips where it is not."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"the shared data has no {name} here")
        return path

    return find
