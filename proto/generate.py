"""Generate the protobuf modules from the ``.proto`` files in this directory: ``python proto/generate.py [--check]``.

grpcio-tools is installed in a temporary environment, because its releases lag behind those of grpcio. ``--check``
writes nothing and fails if a committed module differs from the generated one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Generator of the committed modules; the protobuf runtime must not be older than the generated code.
TOOLS = "grpcio-tools>=1.75,<1.77"


def generate(target: Path, python: Path) -> None:
    """Generate the modules of the package ``farshore.proto`` in the directory ``target``."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "in/farshore").mkdir(parents=True)
        (root / "in/farshore/proto").symlink_to(HERE)
        (root / "out").mkdir()
        sources = [f"farshore/proto/{p.name}" for p in sorted(HERE.glob("*.proto"))]
        out = str(root / "out")
        flags = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
        subprocess.run([str(python), "-m", "grpc_tools.protoc", "-Iin", *flags, *sources], cwd=root, check=True)
        for module in sorted((root / "out/farshore/proto").iterdir()):
            text = module.read_text()
            if module.name.endswith("_pb2_grpc.py") and "def __init__" not in text:
                continue  # the source defines no service
            (target / module.name).write_text(text)


def tools_python(directory: Path) -> Path:
    """Create an environment with the generator and return its Python interpreter."""
    venv.create(directory, with_pip=True)
    python = directory / "bin/python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", TOOLS], check=True)
    return python


def main() -> int:
    """Generate or check the modules; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare with the committed modules")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        python = tools_python(Path(scratch) / "venv")
        target = HERE
        if check:
            target = Path(scratch) / "generated"
            target.mkdir()
        generate(target, python)
        stale = [p.name for p in sorted(target.glob("*_pb2*")) if p.read_text() != (HERE / p.name).read_text()]
    if stale:
        print(f"not current: {', '.join(stale)}; run 'make proto'", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
