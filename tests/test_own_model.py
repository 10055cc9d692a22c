"""docs/own-model.md is run as it stands: the model, its adapter, and an ONNX file that ONNX Runtime agrees with."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own-model.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
ADAPTER_LINES = 40  # "some thirty" statements, as the formatter breaks them; blank lines not counted


def run(*blocks):
    names: dict = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the whole page leaves, and what it printed."""
    import contextlib
    import io
    import os

    folder, before = tmp_path_factory.mktemp("own"), Path.cwd()
    printed = io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            names = run(*BLOCKS)
    finally:
        os.chdir(before)
    return names | {"folder": folder, "printed": printed.getvalue()}


def test_the_page_prints_what_it_says(page):
    said = re.search(r"print\(.*\)  # (.*)", BLOCKS[2])
    assert page["printed"].strip() == said[1]


def test_the_file_gives_what_the_reduced_model_gives(page):
    import onnxruntime

    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(page["folder"] / "mine.onnx"))
    got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        reduced, dense = page["reduced"].module(images), page["model"](images)
    torch.testing.assert_close(got, reduced, rtol=0, atol=1e-5)  # another library's kernels
    assert (reduced - dense).abs().max() > 1e-4


def test_the_head_counts_merged_tokens_by_their_size(page):
    head = page["vit"].head
    tokens = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        merged = head(tokens, torch.tensor([[1.0, 3.0, 1.0, 1.0]]))
        written_out = head(tokens[:, [0, 1, 1, 1, 2, 3]], None)
    torch.testing.assert_close(merged, written_out, rtol=0, atol=1e-6)


def test_the_proof_on_the_page_sees_a_wrong_part():
    from edgevit.errors import UnsupportedModel

    wrong = BLOCKS[1].replace("x + b.down(", "x + 1.01 * b.down(")
    assert wrong != BLOCKS[1]
    with pytest.raises(UnsupportedModel, match="differ from the model"):
        run(BLOCKS[0], wrong, BLOCKS[2])


def test_the_adapter_is_as_short_as_the_page_says():
    code = [line for line in BLOCKS[1].splitlines() if line.strip()]
    assert len(code) <= ADAPTER_LINES
