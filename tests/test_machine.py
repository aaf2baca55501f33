"""What the machine is found to have."""

import os

import pytest

import machine


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ("H100 A", "H100 B")),
        ("1", ("H100 B",)),
        ("GPU-bb,0", ("H100 B", "H100 A")),
        ("", ()),
        ("7", ()),
    ],
)
def test_gpus_are_those_that_a_trainer_would_see(tmp_path, monkeypatch, visible, names):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0, GPU-aa, H100 A\\n1, GPU-bb, H100 B\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.visible_gpus() == names


@pytest.mark.parametrize("script", [None, "exit 9", "echo 'no devices were found'"])
def test_without_a_working_nvidia_smi_there_is_no_gpu(tmp_path, monkeypatch, script):
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.visible_gpus() == ()
