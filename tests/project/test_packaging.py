"""The wheel has every module and the type marker. The `stores` link at the root must not hide the stores."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_stores_link_is_relative_and_points_into_the_package() -> None:
    """It is a shortcut for readers, in any checkout."""
    link = ROOT / "stores"
    assert link.is_symlink()
    assert os.readlink(link) == "tokensession/stores"  # noqa: PTH115 - the text of the link itself


def test_a_wheel_built_from_the_sdist_has_every_module(tmp_path: Path) -> None:
    """The build tool once took the stores for duplicates of the link."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "tokensession"
    wanted = {str(p.relative_to(ROOT)) for p in package.rglob("*.py")} | {"tokensession/py.typed"}
    assert wanted <= shipped, wanted - shipped
    assert not any(name.startswith(("stores/", "tests/")) for name in shipped)
