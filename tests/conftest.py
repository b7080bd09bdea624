"""Shared fixtures: configurations composed from the real files, and commands run as a user would."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from drconv.compose import typed
from drconv.config import Config

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["WANDB_MODE"] = "offline"

# A few steps on the embedded digits with the narrowest network: seconds, not minutes.
TINY = [
    "model=drconv_shufflenetv2_0.25x",
    "recipe.epochs=null",
    "recipe.steps=6",
    "recipe.batch_size=16",
    "recipe.schedule.warmup_steps=2",
    "data.fraction=0.1",
    "logging.every=2",
    "logging.checkpoint_every=2",
    "logging.wandb=disabled",
    "runtime.workers=0",
    "runtime.device=cpu",
]


@pytest.fixture(autouse=True, scope="session")
def _interpreter() -> Iterator[None]:
    """Triton's interpreter, where TRITON_INTERPRET=1 chose it, made right for bfloat16 and twice as fast.

    It keeps bfloat16 as its bits in uint16 and multiplies those: give it the numbers. And it looks for overflow after
    each operation on int32, which sizes as small as ours cannot reach.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: object, a: object, b: object, *rest: object) -> object:
        a, b = (
            interpreter.TensorHandle((v.data.astype("uint32") << 16).view("float32"), tl.float32)
            if v.dtype == tl.bfloat16
            else v
            for v in (a, b)
        )
        return original(builder, a, b, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        patch.setattr(
            interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False)
        )
        yield


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """``make_config("recipe.steps=3", run="a")``: a checked configuration with its run folder below tmp_path."""

    def make(*overrides: str, run: str = "run", base: list[str] = TINY) -> Config:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            raw = compose("train", [*base, f"run={tmp_path / run}", f"outputs={tmp_path}", *overrides])
        return typed(raw)

    return make


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """``command("train.py", "model=..."): runs a script of the repository from another working directory."""

    def run(script: str, *arguments: str, timeout: int = 120, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
