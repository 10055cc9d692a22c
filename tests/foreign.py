"""Files of every exporter, imported: how far each is from the model it was written from, or why it was refused.

    python tests/foreign.py -o WORK                    writes docs/foreign-onnx.md (`make foreign`): half an hour
    python tests/foreign.py -o WORK --only ViT Swin    these rows alone, printed

Weights are random and matter (`tests/quant/hybrids.py`). A cell writes a file with torch, loads it as `edgevit export`
does, and compares the imported module with the PyTorch model on 4 images. timm's models have one Linear for q, k and v,
those of transformers three. Cells already in WORK/foreign.json are not written again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also where PYTHONSAFEPATH keeps it off
from tests.pages import fill

SIZE, IMAGES = 224, 4
UNWRITTEN = "the exporter: "  # what torch itself could not write says nothing of the import


@dataclass(frozen=True)
class Form:
    """How a file is written. whole: attention as one operator where the opset has it, else as its formula."""

    opset: int
    dynamo: bool = False
    whole: bool = True
    dynamic: tuple[int, ...] = ()
    half: bool = False


FORMS = {
    "TorchScript 11": Form(11, whole=False),
    "TorchScript 14": Form(14),
    "TorchScript 17": Form(17),
    "17, formula": Form(17, whole=False),
    "17, any batch": Form(17, dynamic=(0,)),
    "17, any size": Form(17, dynamic=(2, 3)),
    "17, fp16": Form(17, half=True),
    "dynamo 18": Form(18, dynamo=True),
    "dynamo 20": Form(20, dynamo=True),
    "dynamo 23": Form(23, dynamo=True),
    "20, formula": Form(20, dynamo=True, whole=False),
    "20, any batch": Form(20, dynamo=True, dynamic=(0,)),
    "20, any size": Form(20, dynamo=True, dynamic=(2, 3)),
    "20, fp16": Form(20, dynamo=True, half=True),
}


def of_timm(arch: str, any_size: bool = False, **options: Any) -> Callable[[Form], nn.Module]:
    """Builder of a timm model. any_size: it must be told where a file shall take images of any size."""

    def build(form: Form) -> nn.Module:
        import timm
        from timm.layers import set_fused_attn

        set_fused_attn(form.whole)
        more = {"dynamic_img_size": True} if any_size and 2 in form.dynamic else {}
        return timm.create_model(arch, **options, **more)

    return build


def of_transformers(config: str, kind: str, **sizes: Any) -> Callable[[Form], nn.Module]:
    """Builder of a small model of transformers with the one output it is used for."""

    def build(form: Form) -> nn.Module:
        import transformers

        from edgevit.adapters.hf import OneTensor, default_output

        settings = getattr(transformers, config)(**sizes)
        cls = getattr(transformers, kind)
        settings._attn_implementation = "sdpa" if form.whole and cls._supports_sdpa else "eager"
        module = cls(settings)
        return OneTensor(module, default_output(module))

    return build


PLAIN = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": SIZE, "patch_size": 16}
MODELS = {
    "ViT": of_timm("vit_tiny_patch16_224", any_size=True),
    "DeiT distilled": of_timm("deit_tiny_distilled_patch16_224", any_size=True),
    "DINOv2 with registers": of_timm("vit_small_patch14_reg4_dinov2", any_size=True, img_size=SIZE),
    "CLIP vision": of_timm("vit_base_patch32_clip_224", any_size=True),
    "Swin": of_timm("swin_tiny_patch4_window7_224"),
    "MobileViT": of_timm("mobilevit_xxs"),
    "EfficientFormerV2": of_timm("efficientformerv2_s0"),
    "ViT (transformers)": of_transformers("ViTConfig", "ViTForImageClassification", intermediate_size=768, **PLAIN),
    "DeiT distilled (transformers)": of_transformers(
        "DeiTConfig", "DeiTForImageClassificationWithTeacher", intermediate_size=768, **PLAIN
    ),
    "DINOv2 with registers (transformers)": of_transformers(
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", **PLAIN
    ),
    "CLIP vision (transformers)": of_transformers(
        "CLIPVisionConfig", "CLIPVisionModelWithProjection", intermediate_size=768, **PLAIN
    ),
    "Swin (transformers)": of_transformers("SwinConfig", "SwinForImageClassification", depths=(1, 1, 2, 1)),
    "MobileViT (transformers)": of_transformers("MobileViTConfig", "MobileViTForImageClassification"),
}


def built(name: str, form: Form) -> nn.Module:
    """The model with its random weights, which are the same for every form."""
    import torch

    from tests.quant.hybrids import settle, spread

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module = MODELS[name](form)
        spread(module)
        settle(module, torch.randn(4, 3, SIZE, SIZE))
    return module.eval()


def write_file(module: nn.Module, form: Form, path: Path) -> None:
    """Write one file with one of torch's exporters."""
    import torch

    axes = {axis: name for axis, name in ((0, "batch"), (2, "height"), (3, "width")) if axis in form.dynamic}
    options: dict[str, Any] = {"dynamo": form.dynamo, "opset_version": form.opset}
    if form.dynamo:
        options |= {"verbose": False, "dynamic_shapes": ({axis: torch.export.Dim.AUTO for axis in axes},)}
    else:
        options |= {"input_names": ["pixels"], "output_names": ["scores"], "dynamic_axes": {"pixels": axes}}
    dtype = torch.float16 if form.half else torch.float32
    images = torch.zeros(2 if form.dynamo and 0 in axes else 1, 3, SIZE, SIZE, dtype=dtype)
    torch.onnx.export(module.to(dtype), (images,), str(path), **options)


def cell(name: str, form: Form, folder: Path) -> dict[str, Any]:
    """Write and load once: error, and whether blocks were found; or the reason."""
    import torch

    from edgevit.adapters import adapt
    from edgevit.errors import EdgeVitError
    from edgevit.load import load

    module, path = built(name, form), folder / "model.onnx"
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        want = torch.cat([module(image[None]) for image in images])
        try:
            write_file(module, form, path)
        except Exception as error:  # whatever the exporter raises
            return {"refused": UNWRITTEN + (str(error).strip().splitlines() or [type(error).__name__])[0]}
        try:
            foreign = load(str(path), input_size=(SIZE, SIZE) if 2 in form.dynamic else None).module
        except EdgeVitError as error:
            return {"refused": str(error).replace(f"{path}: ", "").replace(str(path), path.name)}
        assert foreign is not None
        got = torch.cat([foreign(image[None]) for image in images])
    found: dict[str, Any] = {"error": float((got - want).abs().max() / want.abs().max())}
    try:
        adapt(foreign)
    except EdgeVitError as error:
        return {**found, "whole": str(error)}
    return {**found, "blocks": True}


def rows(names: list[str], work: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Model → form → cell, written as they come."""
    path = work / "foreign.json"
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        row = found.setdefault(name, {})
        for title, form in FORMS.items():
            if title in row:
                continue
            with (
                tempfile.TemporaryDirectory() as folder,
                warnings.catch_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                warnings.simplefilter("ignore")  # of deprecation, from exporters whose files people have
                row[title] = cell(name, form, Path(folder))
            print(name, title, row[title], file=sys.stderr, flush=True)
            path.write_text(json.dumps(found, indent=1))
    return {name: found[name] for name in names}


def table(found: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """A line a form, a column a model; then totals and the reasons."""
    reasons: list[str] = []

    def shown(one: dict[str, Any]) -> str:
        if "error" in one:
            return f"{one['error']:.0e}{' r' if 'blocks' in one else ''}"
        if one["refused"] not in reasons:
            reasons.append(one["refused"])
        return f"[{reasons.index(one['refused']) + 1}]"

    yield f"| | {' | '.join(found)} |"
    yield "|---|" + "---|" * len(found)
    for title in FORMS:
        yield f"| {title} | {' | '.join(shown(row[title]) for row in found.values())} |"
    every = [one for row in found.values() for one in row.values()]
    written = [one for one in every if not one.get("refused", "").startswith(UNWRITTEN)]
    equal = sum("error" in one for one in written)
    yield ""
    yield (
        f"{equal} of {len(written)} files imported and equal ({100 * equal / len(written):.1f} %); "
        f"{len(every) - len(written)} forms could not be written by torch."
    )
    yield ""
    yield from (f"{number}. {reason}" for number, reason in enumerate(reasons, 1))


def main() -> None:
    """Fill the cells, and write the page or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), metavar="MODEL", default=list(MODELS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table(rows(arguments.only, arguments.work)))
    if arguments.only != list(MODELS):
        print(text)
        return
    fill("foreign-onnx.md", "make foreign", text)


if __name__ == "__main__":
    main()
