"""The locked requirements fit the ranges of pyproject.toml, agree with each other, and name no place to download from."""

import re
import tomllib

import pytest
from live import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("core", "gpu", "train", "test")}


def pins(text):
    """Name -> the versions that a requirements file pins; several where they depend on the Python version."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def ranges(*extras):
    """The requirements of the program and of these extras, and of the extras that they include."""
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            yield from ranges(*requirement.extras)
        else:
            yield requirement


@pytest.mark.parametrize("name", LOCKED)
def test_locked_versions_fit_the_ranges(name):
    """Every dependency of the installation is pinned to versions that pyproject.toml allows."""
    locked = pins(LOCKED[name])
    for requirement in ranges(*([] if name == "core" else [name])):
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} is not in requirements/{name}.txt; run make lock"
        assert all(version in requirement.specifier for version in versions), f"{requirement}: {versions}; run make lock"


@pytest.mark.parametrize("name", ["core", "gpu", "train"])
def test_a_smaller_installation_has_the_versions_of_the_test_environment(name):
    """One environment can grow from core to test, and what was tested is what is installed."""
    everything = pins(LOCKED["test"])
    assert {package: versions - everything.get(package, set()) for package, versions in pins(LOCKED[name]).items()} == {
        package: set() for package in pins(LOCKED[name])
    }


@pytest.mark.parametrize("name", LOCKED)
def test_every_pin_has_hashes_and_no_address(name):
    """Installation works from any index: the hashes say what is right, and no line says where it is."""
    for entry in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCKED[name], flags=re.MULTILINE)):
        assert re.match(r"[\w.-]+==\S+[^\n]*\\\n +--hash=sha256:", entry), entry
    assert not re.search(r"://|^\s*--?(i|index-url|extra-index-url|find-links|f)\b", LOCKED[name], re.MULTILINE)


def test_the_core_has_no_training_packages():
    """A server on a CPU is installed without PyTorch and without the trainer's packages."""
    assert pins(LOCKED["core"]).keys().isdisjoint({"torch", "torchvision", "matplotlib", "scikit-learn", "scipy", "onnx"})
