"""Workflows, issue forms and CITATION.cff are valid; every target of make that they and the documents name exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
# As check-jsonschema calls them, which brings them along.
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
    "vendor.github-issue-forms": FORMS,
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_are_as_their_schema_says(schema):
    pytest.importorskip("check_jsonschema", reason="no check-jsonschema here: pip install check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, SCHEMAS[schema])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("actionlint"), reason="no actionlint here")
def test_actionlint_finds_nothing():
    done = subprocess.run(["actionlint", *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_workflows_may_only_read_unless_a_job_says_more():
    workflows = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS]
    assert [workflow["permissions"] for workflow in workflows] == [{"contents": "read"}] * len(WORKFLOWS)
    assert all("concurrency" in workflow for workflow in workflows)


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.M))
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    for path in WORKFLOWS:
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        lines += [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]
    commands = [found for line in lines for found in re.findall(r"(?:^ *|`|\()make ([^|>#`)]+)", line)]
    used = {word for command in commands for word in command.split() if not word.startswith("-")}
    assert {"check", "test", "test-wheel", "docs", "version", "release-notes"} <= used
    assert sorted(used - targets) == []
