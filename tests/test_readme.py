"""The commands of the README do what it says."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in README.split("```bash\n")[1:] for line in block.split("```")[0].splitlines()]


LONG = (
    "olmo trace belief",
    "olmo trace influence",
    "olmo trace replay",
    "olmo verify releases/first --replay",
    "olmo checkpoints curve",
)
"""Half of the time of all; each has tests of its own, and `make demo` runs most of them."""


@pytest.fixture(scope="module", params=["quick", pytest.param("all", marks=pytest.mark.slow)])
def outputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command printed, in a folder of their own, one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = {}
    for command in COMMANDS:
        if request.param == "quick" and command.startswith(LONG):
            continue
        done = subprocess.run(
            shlex.split(command), cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed[" ".join(command.split()[:3])] = done.stdout + done.stderr
    return printed


def test_every_command_of_the_readme_runs_and_reports(outputs: dict[str, str]) -> None:
    assert "documents" in outputs["olmo data gather"]
    assert "mixed published" in outputs["olmo data publish"]
    assert "as data_manifest.json says" in outputs["olmo data verify"]
    assert "gopher__word_count" in outputs["olmo data find"]
    assert "step 20/20" in outputs["olmo launch local"]
    assert "held out, stdlib: " in outputs["olmo launch local"]
    assert "def main():" in outputs["olmo generate runs/first"]
    assert "row 0" in outputs["olmo data batch"]
    assert "unigram entropy" in outputs["olmo report runs/first"]
    assert "bits_per_byte" in outputs["olmo evaluate runs/first"]
    assert "and the index of 7 releases" in outputs["olmo publish run=runs/first"]
    assert "stage1-step20-tokens0B" in outputs["olmo checkpoints list"]
    assert "lm_head" in outputs["olmo checkpoints diff"]
    assert "import os" in outputs["olmo generate releases/first/main"]
    assert "matrices in f32" in outputs["olmo convert runs/first"]
    assert "bytes per token" in outputs["olmo trace index"]
    assert "in training documents" in outputs["olmo trace text"]
    if "olmo trace replay" in outputs:
        assert "reproduced bit for bit" in outputs["olmo verify releases/first"]
        assert "Open report/report.html in a browser" in outputs["olmo checkpoints curve"]


def test_documents_that_the_readme_names_exist() -> None:
    links = [part.split(")")[0] for part in README.split("](")[1:]]
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_two_commands_are_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target} " in README
        assert f"\n{target}:" in makefile
