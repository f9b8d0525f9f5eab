"""Projects for the doctor's tests: settings, programs on PATH, and what it finds."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.doctor.project import Finding, examine


def write_params(project: Path, **sections: object) -> None:
    tree = {"data": {"root": "data/tiny"}, "variants": {"exact": {}}, **sections}
    (project / "params.yaml").write_text(yaml.safe_dump(tree))


def write_program(project: Path, name: str, script: str) -> None:
    program = project.parent / "programs" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def topic(project: Path, name: str) -> list[Finding]:
    findings = [finding for finding in examine(project / "params.yaml") if finding.topic == name]
    assert findings, f"nothing said about {name}"
    return findings


def one(project: Path, name: str) -> Finding:
    (finding,) = topic(project, name)
    return finding
