"""Generate the protobuf modules beside their sources: ``python proto/generate.py [--check]``.

grpcio-tools runs in an environment of its own, because its releases lag grpcio's. ``--check`` writes nothing and
fails when a committed module is not what the source gives.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: The generator that the committed modules were made with; the protobuf runtime must not be older than its gencode.
TOOLS = "grpcio-tools>=1.75,<1.77"


def generate(target: Path, python: Path) -> None:
    """Write the modules for every source here into ``target`` as parts of the package ``farshore.proto``."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "in/farshore").mkdir(parents=True)
        (root / "in/farshore/proto").symlink_to(HERE)
        (root / "out").mkdir()
        sources = [f"farshore/proto/{p.name}" for p in sorted(HERE.glob("*.proto"))]
        out = str(root / "out")
        flags = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
        subprocess.run([str(python), "-m", "grpc_tools.protoc", "-Iin", *flags, *sources], cwd=root, check=True)
        for made in sorted((root / "out/farshore/proto").iterdir()):
            text = made.read_text()
            if made.name.endswith("_pb2_grpc.py") and "def __init__" not in text:
                continue  # no service in this source
            (target / made.name).write_text(text)


def tools_python(directory: Path) -> Path:
    """Make an environment that holds the generator; returns its interpreter."""
    venv.create(directory, with_pip=True)
    python = directory / "bin/python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", TOOLS], check=True)
    return python


def main() -> int:
    """Generate or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare with the committed modules")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        python = tools_python(Path(scratch) / "venv")
        target = HERE
        if check:
            target = Path(scratch) / "made"
            target.mkdir()
        generate(target, python)
        stale = [p.name for p in sorted(target.glob("*_pb2*")) if p.read_text() != (HERE / p.name).read_text()]
    if stale:
        print(f"not current: {', '.join(stale)}; run 'make proto'", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
