"""What is installed: versions, OpenCV's libraries, the GPU."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.load import load_settings
from pipeline.doctor import software
from pipeline.doctor.project import Finding
from tests.pipeline.doctor.projects import one, topic, write_params, write_program


def test_the_installed_versions_are_told_and_fit(place: Path) -> None:
    (packages,) = topic(place, "packages")
    assert packages.status == "ok"
    assert f"torch {importlib.metadata.version('torch')}" in packages.text
    assert f"kiloseg {importlib.metadata.version('kiloseg-pipeline')}" in packages.text


def test_a_package_that_is_absent_or_too_old_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["rich>=999", "no-such-package>=1.0", "typer>=0.1", "windows-only>=1; sys_platform == 'win32'"]
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda name: wanted)
    first, *wrong = topic(place, "packages")
    assert first.status == "ok"
    assert [finding.status for finding in wrong] == ["missing", "missing"]
    assert wrong[0].text == f"rich {importlib.metadata.version('rich')} does not fit (wanted: >=999)"
    assert "no-such-package is not installed" in wrong[1].text
    assert {finding.hint for finding in wrong} == {"make setup"}


@pytest.mark.parametrize(
    ("torch", "torchvision", "count"),
    [("2.15.0+cpu", "0.29.2", 1), ("2.15.0+cpu", "0.29.2+cpu", 0), ("2.15.0", "0.29.2", 0)],
)
def test_a_cpu_only_torch_beside_the_usual_torchvision_is_found(
    torch: str, torchvision: str, count: int
) -> None:
    assert len(software._torch_pair({"torch": torch, "torchvision": torchvision})) == count


def test_an_opencv_that_does_not_load_names_the_library(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(software.ctypes, "CDLL", fails)
    finding = one(place, "opencv")
    assert finding.status == "missing"
    assert "libGL.so.1" in finding.text
    assert "libgl1" in str(finding.hint)


def test_no_gpu_is_a_warning_unless_the_settings_want_one(place: Path) -> None:
    assert one(place, "gpu").status == "warning"
    write_params(place, runtime={"device": "cuda:0"})
    finding = one(place, "gpu")
    assert finding.status == "missing"
    assert "runtime.device" in str(finding.hint)


def test_each_gpu_is_told_with_memory_and_driver(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_torch_cuda", lambda: "13.2")
    write_program(place, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 580.1'; echo 'Other, 1 MiB, 580.1'")
    first, second = topic(place, "gpu")
    assert first == Finding("gpu", "ok", "NVIDIA H200, 143771 MiB, driver 580.1, torch for CUDA 13.2")
    assert second.text.startswith("Other, 1 MiB")


def test_a_gpu_that_torch_was_not_built_for_is_a_warning(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "_torch_cuda", lambda: None)
    write_program(place, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 580.1'")
    finding = one(place, "gpu")
    assert (finding.status, "without CUDA" in finding.text) == ("warning", True)


def test_a_broken_driver_is_told_in_its_own_words(place: Path) -> None:
    write_program(place, "nvidia-smi", "echo 'Failed to initialize NVML: version mismatch'; exit 18")
    assert "Failed to initialize NVML" in one(place, "gpu").text


def test_a_driver_that_hangs_does_not_hang_the_doctor(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "DEADLINE", 0.2)
    write_program(place, "nvidia-smi", "exec /bin/sleep 60")
    finding = one(place, "gpu")  # the test would take a minute
    assert (finding.status, finding.hint) == ("warning", "check the driver")


def test_torch_s_cuda_version_is_what_torch_says(place: Path) -> None:
    import torch

    assert software._torch_cuda() == torch.version.cuda


def space(mib: int) -> Any:
    return lambda path: SimpleNamespace(total=64 * 2**20, free=mib * 2**20)


def test_a_containers_shared_memory_is_held_against_what_the_loader_puts_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten crops of 512 are 27.5 MiB; two processes have two of them ready each, and one is being used."""
    paper = {"train": {"batch_size": 10, "crop_size": 512}}
    monkeypatch.setattr(software.shutil, "disk_usage", space(64))
    write_params(place, **paper, runtime={"num_workers": 2})
    found = one(place, "memory")
    assert found.status == "warning"
    assert "about 138" in found.text
    assert found.hint is not None
    assert "--shm-size" in found.hint
    monkeypatch.setattr(software.shutil, "disk_usage", space(138))
    assert one(place, "memory").status == "ok"
    write_params(place, **paper, runtime={"num_workers": 0})
    assert software.check_shared_memory([load_settings(place / "params.yaml")]) == []


def test_shared_memory_that_cannot_be_written_is_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(place, runtime={"num_workers": 2})
    monkeypatch.setattr(software.os, "access", lambda path, mode: path != software.SHARED_MEMORY)
    assert one(place, "memory").status == "missing"
    monkeypatch.setattr(software, "SHARED_MEMORY", place / "none")
    assert "there is no" in one(place, "memory").text
