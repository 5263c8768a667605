"""The container's recipe without an engine: what it copies is there, nothing else gets in, and its steps work.

The packages are not fetched again: the bare environment gets links to exactly those that installing `.[app,onnx]` would
install, found by walking the requirements, so that one that is missing among them is missing here too.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from helpers.datasets import ROOT, picture
from helpers.models import write_model
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from exp_tools.cli import main as cli
from exp_tools.serving import health


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), continued lines joined, comments gone."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def copied() -> list[str]:
    """What the Dockerfile copies from the build context."""
    sources = []
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from="):
            sources += [source.rstrip("/") for source in rest.split()[:-1]]
    return sources


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out: the last rule that fits it, or a folder above it, decides."""
    out = False
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        keep, pattern = rule.startswith("!"), rule.lstrip("!").strip("/")
        names = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
        deep = pattern.startswith("**/")
        if any(
            fnmatch.fnmatchcase(Path(one).name if deep else one, name)
            for one in parents
            for name in names
            if deep or name.count("/") == one.count("/")
        ):
            out = not keep
    return out


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_rules_of_what_is_ignored_are_read_as_docker_reads_them():
    assert ignored("data/raw/a.jpg")
    assert ignored("models/model.safetensors")
    assert ignored("exp_tools/data/__pycache__/labels.cpython-312.pyc")
    assert not ignored("exp_tools/data/labels/table.py")
    assert not ignored("exp_tools/data/duplicates/known/ham10000.csv")
    assert not ignored("pyproject.toml")


def test_what_is_copied_is_there_and_all_that_is_there_is_copied():
    files = tracked()
    for source in copied():
        below = [name for name in files if name == source or name.startswith(f"{source}/")]
        assert below, f"{source} is copied, but there is no such file"
        assert [name for name in below if ignored(name)] == [], source
    sent = {name for name in files if not ignored(name)}
    used = {name for name in sent if any(name == one or name.startswith(f"{one}/") for one in copied())}
    assert sent - used == {"Dockerfile"}


def test_no_data_model_result_or_history_is_sent_to_the_engine():
    names = ["data", "models", "metrics", "plots", "runs", "downloads", ".git", ".dvc", ".venv", "notebooks", "tests"]
    assert [name for name in names if not ignored(f"{name}/x")] == []
    size = sum((ROOT / name).stat().st_size for name in tracked() if not ignored(name))
    assert size < 5e6


def test_the_image_is_slim_has_a_user_of_its_own_and_a_check_that_needs_no_other_program():
    build, final = stages()
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", bases[-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version
    assert version[1] in SpecifierSet(project["requires-python"])
    assert bases[0] == bases[-1]  # an environment moves only between equal Pythons
    names = [name for name, _ in final]
    assert "ADD" not in names
    assert dict(final)["USER"] == "app"
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    assert "HEALTHCHECK" in names
    text = " ".join(rest for _, rest in instructions())
    assert not re.search(r"curl|wget|https?://(?!127\.0\.0\.1)", text)
    assert [name for name, _ in build].count("COPY") == 3
    assert json.loads(dict(final)["VOLUME"]) == ["/app/models", "/app/data"]
    assert ports() == {"8501", "8000"}


def ports() -> set[str]:
    return set(dict(stages()[-1])["EXPOSE"].split())


def parsed(command: list[str]):
    assert command[0] == "exp-tools"
    parser, _ = cli._parser()
    return parser.parse_args(command[1:])


def test_compose_serves_this_machine_alone_from_volumes_of_this_folder():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"app", "api"}
    for service in services.values():
        (port,) = service["ports"]
        address, outer, inner = port.split(":")
        assert address == "127.0.0.1"
        assert outer == inner
        assert inner in ports()
        for volume in service["volumes"]:
            outer, inner, mode = volume.split(":")
            assert inner == f"/app/{outer.removeprefix('./')}"
            assert mode == "ro"
        assert service["security_opt"] == ["no-new-privileges:true"]
    options = parsed(services["api"]["command"])
    assert (options.host, options.port) == ("0.0.0.0", 8000)
    assert not any("healthcheck" in service for service in services.values())  # the image's own fits both
    assert "./MODEL_CARD.md:/app/MODEL_CARD.md:ro" in services["app"]["volumes"]
    options = parsed(json.loads(dict(stages()[-1])["CMD"]))
    assert (options.host, options.port, options.allow_training) == ("0.0.0.0", 8501, False)


def needed(extras: list[str]) -> list[metadata.Distribution]:
    """The distributions that `pip install .[extras]` would install, from the metadata of those that are here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(one) for one in project["dependencies"]]
    for extra in extras:
        waiting += [Requirement(one) for one in project["optional-dependencies"][extra]]
    done: dict[tuple[str, str], metadata.Distribution] = {}
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key in done or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            done[key] = metadata.distribution(requirement.name)
            for text in done[key].requires or []:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    further.marker = None
                    waiting.append(further)
    return list({name: found for (name, _), found in done.items()}.values())


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """What the Dockerfile makes, in folders: /opt/venv is `venv`, /app is `app`, with a model in its volume."""
    folder = tmp_path_factory.mktemp("container")
    context, app, venv = folder / "src", folder / "app", folder / "venv"
    for name in tracked():
        if not ignored(name):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, context / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    for distribution in needed(["app", "onnx"]):
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            origin = Path(str(distribution.locate_file(top)))
            if origin.exists() and not (site / top).exists():
                (site / top).symlink_to(origin)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([sys.executable, *install, folder / "package", context], check=True)  # the project's own package
    for part in (folder / "package").iterdir():
        if part.name != "bin":
            shutil.move(part, site / part.name)
    script = (folder / "package/bin/exp-tools").read_text().split("\n", 1)[1]
    (venv / "bin/exp-tools").write_text(f"#!{venv}/bin/python\n{script}")
    (venv / "bin/exp-tools").chmod(0o755)
    for name, rest in stages()[-1]:
        if name == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            for source in sources:
                origin, place = context / source, app / target
                if origin.is_dir():
                    shutil.copytree(origin, place)
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(origin, place / source)
    write_model(app / "models/model.safetensors")
    picture(1, 120, 90).save(folder / "image.jpg")
    return folder


def environment(container: Path) -> dict[str, str]:
    """The variables that the Dockerfile sets, on an otherwise bare environment."""
    found = {"HOME": str(container / "home"), "OMP_NUM_THREADS": "1"}
    (container / "home").mkdir(exist_ok=True)
    for name, rest in stages()[-1]:
        if name == "ENV":
            found |= dict(word.split("=", 1) for word in shlex.split(rest))
    return found | {"PATH": f"{container / 'venv/bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_command() -> list[str]:
    return json.loads(dict(stages()[-1])["CMD"])


def health_command() -> list[str]:
    return json.loads(re.search(r"CMD (\[.*\])$", dict(stages()[-1])["HEALTHCHECK"])[1])


def api_command() -> list[str]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["api"]["command"]


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["exp-tools", "app", "--host", "0.0.0.0", "--port", "8501"], "http://127.0.0.1:8501/_stcore/health"),
        (["/opt/venv/bin/python", "/opt/venv/bin/exp-tools", "api"], "http://127.0.0.1:8000/health"),
        (["sh", "-c", "exp-tools api --port=81"], "http://127.0.0.1:81/health"),
        (["exp-tools", "app", "--public-url", "https://a.org/b/"], "http://127.0.0.1:8501/b/_stcore/health"),
        (["exp-tools", "api", "--public-url", "https://a.org/b"], "http://127.0.0.1:8000/health"),
    ],
)
def test_the_health_check_asks_the_server_that_the_command_started(command, asked):
    assert health.address(command) == asked


@pytest.mark.parametrize("service", ["app", "api"])
def test_the_service_starts_in_a_bare_environment_is_healthy_and_stops(container, service):
    command = start_command() if service == "app" else api_command()
    inner, outer = command[-1], str(free_port())
    command = ["127.0.0.1" if word == "0.0.0.0" else outer if word == inner else word for word in command]
    run = {"cwd": container / "app", "env": environment(container)}
    log = container / f"{service}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **run)
    check = [*health_command(), str(process.pid)]  # in a container it is the first process
    try:
        deadline = time.monotonic() + 90
        while subprocess.run(check, capture_output=True, **run).returncode and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        assert subprocess.run(check, capture_output=True, **run).returncode == 0, log.read_text()
        if service == "api":
            with urllib.request.urlopen(f"http://127.0.0.1:{outer}/model", timeout=10) as answer:
                assert json.load(answer)["trained_on"] == "synthetic"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
    assert subprocess.run(check, capture_output=True, **run).returncode != 0


def test_the_commands_work_in_a_bare_environment(container):
    run = {"cwd": container / "app", "env": environment(container), "capture_output": True, "text": True}
    where = subprocess.run(["python", "-c", "import exp_tools, sys; print(exp_tools.__path__, sys.prefix)"], **run)
    assert str(ROOT) not in where.stdout, where.stderr
    export = ["exp-tools", "export", "--images", str(container), "--out", str(container / "model.onnx")]
    done = subprocess.run(export, **run)
    assert "largest difference from the model" in done.stdout, done.stderr
    command = ["exp-tools", "predict", str(container / "image.jpg"), "--model", str(container / "model.onnx"), "--json"]
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout)["probabilities"].values()) == pytest.approx(1, abs=1e-6)
