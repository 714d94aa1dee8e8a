"""The scripts that measure a released network: their settings, and their message if there is no such network."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
SCRIPTS = [file.name for file in sorted((ROOT / "results" / "make").glob("*.sh")) if "/networks.sh" in file.read_text()]


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [(), ("alexnet",), ("gnn vgg11_bn",)])
def test_an_unknown_network_is_one_line(script: str, arguments: tuple[str, ...]) -> None:
    run = ran("bash", f"results/make/{script}", *arguments)
    assert run.returncode == 1 and not run.stdout
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"error: {''.join(arguments) or 'no network named'}: ") and "vgg11_bn_static" in line


@pytest.mark.parametrize("kind", [(), ("without-relu",)])
def test_settings_are_of_evaluate(kind: tuple[str, ...]) -> None:
    names = (
        ran(sys.executable, "results/make/networks.py", "", *kind).stderr.partition("one of ")[2].strip().split(", ")
    )
    assert len(names) == len(set(names)) >= 7
    for name in names:
        overrides = ran(sys.executable, "results/make/networks.py", name, *kind).stdout.split()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            compose("evaluate", overrides)
