"""What is installed is what is in the source folders: every module, every data file, nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, str] = SETTINGS["tool"]["setuptools"]["package-dir"]
NOT_INSTALLED = {"models/artifacts"}  # grown networks to download, with their page
PROGRAM = "import growpipe.cli; print(growpipe.cli.__file__); growpipe.cli.main(['--version'])"


def source_files() -> dict[str, Path]:
    """Every file of the source folders by the path that it has once installed."""
    files = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            within = path.relative_to(ROOT).as_posix()
            if (
                path.is_dir()
                or "__pycache__" in path.parts
                or any(within.startswith(n) for n in NOT_INSTALLED)
            ):
                continue
            files[f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"] = path
    return files


def test_every_folder_with_modules_is_a_package_that_is_installed() -> None:
    folders = {Path(file).parent for file in source_files() if file.endswith(".py")}
    assert {folder.as_posix().replace("/", ".") for folder in folders} == set(
        SETTINGS["tool"]["setuptools"]["packages"]
    )
    for folder in folders:
        assert f"{folder.as_posix()}/__init__.py" in source_files()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the sources, so that a build folder of the checkout takes no part."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(target), str(copy)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("growpipe-*.whl")
    return built


def test_a_wheel_holds_every_module_and_every_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == set(source_files())


def test_an_installed_wheel_works_by_itself(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    place, version = done.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert version.endswith(SETTINGS["project"]["version"])


def requirements() -> dict[str, str]:
    """Every requirement of the package and its extras: the lower bound by the name."""
    project = SETTINGS["project"]
    lines = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    return dict(line.split(">=") for line in lines)


def constraints(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(encoding="utf-8"), re.M))


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    lowest = {name.lower(): version for name, version in constraints("constraints-lowest.txt").items()}
    declared = {name.lower(): version for name, version in requirements().items()}
    assert set(declared) - set(lowest) == {"curvlinops-for-pytorch", "onnxruntime-gpu", "mypy", "ruff"}
    for name, version in lowest.items():
        assert re.fullmatch(re.escape(declared[name]) + r"(\.\d+)*", version), name


def test_every_requirement_has_a_version_that_was_tested() -> None:
    tested = {name.lower().replace("_", "-") for name in constraints("constraints.txt")}
    assert {name.lower().replace("_", "-") for name in requirements()} - tested == {"curvlinops-for-pytorch"}
