"""The C++ kernel and its tests under AddressSanitizer: no byte is read or written that is not its own.

    python scripts/sanitize.py                      # the tests of the kernel
    python scripts/sanitize.py tests/test_conv.py   # others

The kernel is built once more, with the sanitizer, beside the usual one. Any error ends the run with the
sanitizer's report. Tests that start processes or compile are left out: the sanitizer would watch those too.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/test_cpu_checks.py", "tests/test_cpu_kernel.py", "tests/test_kernels.py", "tests/test_inference.py")
LEFT_OUT = "not compile and not triton and not [reference and not [torch"


def runtime(compiler: str, name: str) -> str:
    """Where the compiler keeps a library, or "" where it has none."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip() if Path(found.stdout.strip()).is_absolute() else ""


def main() -> int:
    """Run pytest with the sanitizer loaded first; returns its exit code."""
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    # The sanitizer looks for the exceptions of C++ when it is loaded, so their library must be there by then.
    libraries = [runtime(compiler, name) for name in ("libasan.so", "libstdc++.so")]
    if not all(libraries):
        print(f"{compiler} has no AddressSanitizer (libasan.so); install it, for example the package libasan8")
        return 2
    environment = {
        **os.environ,
        "DRCONV_SANITIZE": "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they have to the end
    }
    tests = sys.argv[1:] or TESTS
    # Output that is captured would be lost with the process.
    command = [sys.executable, "-m", "pytest", "-x", "--capture=sys", "-p", "no:cacheprovider", *tests, "-k", LEFT_OUT]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
