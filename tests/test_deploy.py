"""Dockerfile and deploy/: what they name is there, and every command line in them is one that gpupipe takes."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "deploy"))

import dist
import image

from gpupipe.cli import commands

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"

PORTS = {"http": 8500, "grpc": 8501}
LIVES, READY = "/healthz", "/readyz"


def parsed(arguments: list[str]) -> Any:
    """What the command line makes of arguments; ends with a message for wrong ones."""
    return commands._parser(commands.load(arguments)).parse_args(arguments)


def is_the_usual(options: Any, tokens: str, characters: str = "/characters") -> None:
    """A server that listens for others, and wants tokens of them."""
    assert options.command == "serve"
    assert options.characters == Path(characters)
    assert (options.host, options.port, options.grpc_port) == ("0.0.0.0", PORTS["http"], PORTS["grpc"])
    assert str(options.token_file) == tokens
    assert options.grace == 30


@cache
def dockerfile() -> list[tuple[str, str]]:
    return image.instructions((ROOT / "Dockerfile").read_text("utf-8"))


@cache
def stages() -> dict[str, list[tuple[str, str]]]:
    return image.stages((ROOT / "Dockerfile").read_text("utf-8"))


def test_the_image_holds_what_is_there() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    copied = {line[1:] for line in ignored if line.startswith("!")}
    used = set()
    for instruction, rest in dockerfile():
        if instruction == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                used.add(source)
        if instruction == "COPY" and "--from" in rest:
            assert re.match(r"--from=(\S+)", rest)[1] in stages()  # type: ignore[index]
    assert used == copied
    # What the build reads.
    assert {"pyproject.toml", "README.md", "LICENSE", "kernels", "gpupipe"} <= used


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_runs_a_server_that_is_nobody(target: str) -> None:
    found = stages()
    base = found["base"]
    told = {**dict(base), **dict(found[target])}
    assert list(found)[-1] == "cpu"  # what is built when no target is named
    assert told["USER"].split(":")[0].isdecimal()
    assert int(told["USER"].split(":")[0]) > 0
    assert told["STOPSIGNAL"] == "SIGTERM"
    assert told["EXPOSE"].split() == [str(port) for port in PORTS.values()]
    assert json.loads(told["ENTRYPOINT"]) == ["gpupipe"]
    options = parsed(json.loads(told["CMD"]))
    is_the_usual(options, "/run/secrets/tokens")
    assert (options.device == "cuda") == (target == "cuda")
    check = json.loads(told["HEALTHCHECK"].split("CMD", 1)[1])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "HEALTHCHECK", "exec")
    assert f":{PORTS['http']}{LIVES}" in check[2]
    # The base image is named, and nothing else is fetched but by pip.
    assert {rest.split()[0] for name, rest in dockerfile() if name == "FROM"} <= {*found, "python:${PYTHON}-slim"}
    (install,) = (rest for name, rest in found[f"build-{target}"] if name == "RUN")
    extras = re.search(r'"\.\[([a-z,]+)\]"', install)
    assert extras is not None
    for extra in extras[1].split(","):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)


def test_the_images_own_script_makes_its_user() -> None:
    (run,) = (rest for name, rest in stages()["base"] if name == "RUN")
    uid = re.search(r"--uid (\d+)", run)
    assert uid is not None
    assert dict(stages()["base"])["USER"] == f"{uid[1]}:{uid[1]}"
    for command in run.split("&&"):
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0


def unit() -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(DEPLOY / "gpupipe.service", "utf-8")
    return found


def test_the_systemd_unit() -> None:
    service = unit()["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program == "/usr/local/bin/gpupipe"
    is_the_usual(parsed(arguments), "${CREDENTIALS_DIRECTORY}/tokens", "/srv/characters")
    assert service["LoadCredential"].split(":")[0] == "tokens"
    assert int(service["TimeoutStopSec"]) > 30
    hardened = {
        "DynamicUser": "yes",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "PrivateTmp": "yes",
    }
    assert {name: service[name] for name in hardened} == hardened


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def test_the_kubernetes_manifest() -> None:
    by_kind = {each["kind"]: each for each in documents("kubernetes.yaml")}
    assert set(by_kind) == {"PersistentVolumeClaim", "Deployment", "Service", "PodDisruptionBudget"}
    for each in by_kind.values():
        assert {"apiVersion", "kind", "metadata", "spec"} == set(each)
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", each["metadata"]["name"])
    template = by_kind["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    for selector in (
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        by_kind["Service"]["spec"]["selector"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    pod = template["spec"]
    (container,) = pod["containers"]
    options = parsed(container["args"])
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    is_the_usual(options, f"{mounts['tokens']['mountPath']}/tokens", mounts["characters"]["mountPath"])
    assert (
        volumes["characters"]["persistentVolumeClaim"]["claimName"]
        == (by_kind["PersistentVolumeClaim"]["metadata"]["name"])
    )
    assert volumes["tokens"]["secret"]["secretName"] == "gpupipe-tokens"
    assert mounts["characters"]["readOnly"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == PORTS
    for port in by_kind["Service"]["spec"]["ports"]:
        assert port["port"] == PORTS[port["name"]]
        assert port["targetPort"] in ports
    for probe, path in (("startupProbe", LIVES), ("livenessProbe", LIVES), ("readinessProbe", READY)):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert options.device == "cuda"
    assert pod["terminationGracePeriodSeconds"] > options.grace
    assert pod["securityContext"]["runAsNonRoot"]
    assert (
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        == (dict(stages()["base"])["USER"])
    )


def test_the_compose_file() -> None:
    (found,) = documents("compose.yaml")
    for target, service in found["services"].items():
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert service["build"]["target"] == target
        assert target in stages()
        assert service["ports"] == [f"{port}:{port}" for port in PORTS.values()]
        assert service["secrets"] == list(found["secrets"])  # which are mounted in /run/secrets
        assert any(volume.endswith(":/characters:ro") for volume in service["volumes"])


def test_the_ray_cluster() -> None:
    (found,) = documents("ray-cluster.yaml")
    told = [*found["setup_commands"], *found["head_start_ray_commands"], *found["worker_start_ray_commands"]]
    for command in told:
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0
    assert found["max_workers"] == len(found["provider"]["worker_ips"])
    head, worker = (
        next(line for line in found[f"{who}_start_ray_commands"] if "start" in line) for who in ("head", "worker")
    )
    port = re.search(r"--port=(\d+)", head)
    assert port is not None
    assert f"--address=$RAY_HEAD_IP:{port[1]}" in worker
    # The extras are in the project; Ray's own schema holds, where Ray is installed.
    ray = importlib.util.find_spec("ray")
    if ray is not None and ray.origin is not None:
        import jsonschema

        schema = Path(ray.origin).parent / "autoscaler" / "ray-schema.json"
        jsonschema.validate(found, json.loads(schema.read_text("utf-8")))


def test_what_is_built_is_named_for_what_it_runs_on(tmp_path: Path) -> None:
    assert dist.file_name("1.2.3", ["3.11"]) == "gpupipe-1.2.3-cpu-linux-x86_64-py3.11.pex"
    assert dist.file_name("1.2.3", ["3.11", "3.12", "3.13"]) == "gpupipe-1.2.3-cpu-linux-x86_64-py3.11-3.13.pex"
    assert dist.epoch().isdecimal()
    wheels = {
        "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64": ">=3.11",
        "numpy-2.5.5-cp312-cp312-manylinux_2_28_x86_64": ">=3.12",
        "pyee-13.0.1-py3-none-any": ">=3.8",
        "pyee-16.0.1-py3-none-any": ">=3.12",
        "av-18.1.0-cp311-abi3-manylinux_2_28_x86_64": ">=3.11",
        "gpupipe-0.1.0-py3-none-any": ">=3.11",
    }
    with zipfile.ZipFile(tmp_path / "some.pex", "w") as archive:
        for wheel, python in wheels.items():
            info = "-".join(wheel.split("-")[:2]) + ".dist-info"
            archive.writestr(f".deps/{wheel}.whl/{info}/METADATA", f"Name: some\nRequires-Python: {python}\n")
    assert dist.held(tmp_path / "some.pex", ["3.11", "3.12"]) == [
        "av==18.1.0",
        'numpy==2.4.6; python_version == "3.11"',
        'numpy==2.5.5; python_version == "3.12"',
        'pyee==13.0.1; python_version == "3.11"',
        'pyee==16.0.1; python_version == "3.12"',
    ]
    for extra in dist.EXTRAS.split(","):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)


def test_every_command_of_the_page_is_one() -> None:
    """docs/deploy.md: lines of gpupipe in it are parsed, and files that it names are there."""
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    lines = re.findall(r"^    (?:\./)?gpupipe(?:-\S+\.pex)? (.+)$", page, re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        parsed(shlex.split(line.split("#")[0]))
    for path in re.findall(r"\]\(\.\./(deploy/[\w.-]+|Dockerfile)\)", page):
        assert (ROOT / path).is_file()
