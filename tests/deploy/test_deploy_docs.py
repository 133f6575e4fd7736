"""docs/deploy.md tells the truth: its code runs an exported file, and answers as it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs.small_job import SPACE, SUPERNET, write_small_job
from PIL import Image

from nni_spaceevo.deploy.sessions import open_session
from nni_spaceevo.distill.data.images import normalized
from nni_spaceevo.jobs.distillation import images
from nni_spaceevo.jobs.export import export_subnet
from nni_spaceevo.jobs.supernets import train_supernet
from nni_spaceevo.latency.machine import has_vnni

TEXT = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.slow
def test_its_code_answers_as_the_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ai_edge_litert", reason="TFLite needs the extra [litert]")
    job = write_small_job(tmp_path, supernet=SUPERNET)
    train_supernet(job, SPACE)
    monkeypatch.chdir(tmp_path)
    files = [Path(f"within_10ms.{kind}") for kind in ("onnx", "tflite")]
    for file in files:
        report = export_subnet(job, "largest", file, space=SPACE)
    data = images(job)
    pixels = np.random.default_rng(0).integers(256, size=(40, 30), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    r = report.resolution
    resized = np.asarray(Image.open("photo.png").resize((r, r)))
    prepared = normalized(torch.from_numpy(resized.copy())[None, None], data.mean, data.std)
    expected = [open_session(file).logits(prepared.numpy()) for file in files]
    names: dict[str, Any] = {}
    capsys.readouterr()
    for code, logits in zip(BLOCKS, expected, strict=True):
        if not has_vnni():
            code = code.replace("# On x86 without VNNI: ", "")
        exec(code.replace('"RGB"', '"L"'), names)
        np.testing.assert_allclose(names["logits"], logits, rtol=1e-5, atol=1e-5)
    assert capsys.readouterr().out.strip() == str(expected[0].argmax())
