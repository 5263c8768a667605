"""requirements.lock installs the whole project, at exact versions, on Linux, macOS and Windows, from any index."""

import importlib.metadata
import re
import tomllib

import pytest
from helpers.project import ROOT
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if line.strip() and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

SYSTEMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


def direct_requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in project["dependencies"] + extras + PROJECT["build-system"]["requires"]]


def installed_on(system: str, python: str) -> dict[str, str]:
    """Version by package name of what the lock installs there."""
    environment = (
        default_environment() | SYSTEMS[system] | {"python_version": python, "python_full_version": f"{python}.0"}
    )
    chosen = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in chosen}
    assert len(versions) == len(chosen), "two versions of one package"
    return versions


def test_every_line_is_an_exact_pin_and_names_no_place():
    pin = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.!]*( ; .+)?")
    assert [line for line in LINES if line and not line.startswith("#") and not pin.fullmatch(line)] == []
    assert not re.search(r"://|--|@|\+", "\n".join(LINES))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_dependency_of_the_project_is_pinned_at_a_version_it_allows(system, python):
    versions = installed_on(system, python)
    wanted = direct_requirements()
    assert len(wanted) > 20
    for requirement in wanted:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_what_exists_for_linux_only_stays_there(system):
    linux_only = re.compile(r"(nvidia|cuda)-|triton$")
    pure_python = {"nvidia-ml-py"}
    found = {name for name in installed_on(system, "3.12") if linux_only.match(name)}
    assert found <= pure_python
    assert any(linux_only.match(name) for name in installed_on("linux", "3.12").keys() - pure_python)


def test_the_lock_leaves_no_dependency_out_here():
    """`make install` takes nothing but the lock (pip --no-deps): follow what each package asks for on this machine."""
    locked = {canonicalize_name(pin.name): pin for pin in PINS if pin.marker is None or pin.marker.evaluate()}
    waiting = direct_requirements()
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            assert name in locked, f"{requirement} is asked for and not in requirements.lock: make lock"
            version = next(iter(locked[name].specifier)).version
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, locked {version}"
            asked = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            waiting += [one for one in asked if one.marker is None or one.marker.evaluate({"extra": extra})]
    assert len({name for name, _ in seen}) > 100
