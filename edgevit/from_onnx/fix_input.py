"""Which input is the image and which output is wanted, and the image's size made a constant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgevit.errors import LoadError
from edgevit.from_onnx.one_float_type import computes_in_half
from edgevit.names import did_you_mean, listed

if TYPE_CHECKING:
    import onnx

    from edgevit.from_onnx.read import Foreign


@dataclass(frozen=True)
class Ends:
    """The image input and the one output of a foreign graph.

    batch: the one that the file was exported for, or None. last: channels come last, `[B, H, W, 3]`. kind: the element
    type that the file itself takes, as in onnx.TensorProto. half: the file computes in 16 bits.
    """

    image: str
    output: str
    size: tuple[int, int]
    batch: int | None
    last: bool
    kind: int
    half: bool


def fix_input(foreign: Foreign, size: tuple[int, int] | None, output: str | None) -> Foreign:
    """Images [N, 3, H, W]  becomes  images [N, 3, 224, 224]; all outputs but one go. Raises LoadError."""
    graph = foreign.model.graph
    values = [i for i in graph.input if i.name not in foreign.weights]
    known = {t.name for t in graph.initializer}
    values = [i for i in values if i.name not in known]
    if len(values) != 1:
        raise LoadError(
            f"{foreign.name} must take one image; it takes {len(values)} inputs ({listed([v.name for v in values])}); "
            "export the vision part alone"
        )
    image = values[0]
    kind, dims = image.type.tensor_type.elem_type, _dims(image)
    _check_image(foreign, image.name, kind, dims)
    last = dims[1] != 3 and dims[3] == 3
    places = (1, 2) if last else (2, 3)
    fixed = _size(foreign, tuple(dims[p] for p in places), size)
    for place, value in zip(places, fixed, strict=True):
        image.type.tensor_type.shape.dim[place].dim_value = value
    image.type.tensor_type.shape.dim[3 if last else 1].dim_value = 3
    wanted = _output(foreign, output)
    del graph.value_info[:]  # may name the old sizes
    return replace(foreign, ends=Ends(image.name, wanted, fixed, dims[0], last, kind, computes_in_half(foreign)))


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]


def _check_image(foreign: Foreign, name: str, kind: int, dims: list[int | None]) -> None:
    from onnx import TensorProto

    shown = ["?" if d is None else d for d in dims]
    if len(dims) != 4 or (3 not in (dims[1], dims[3]) and None not in (dims[1], dims[3])):
        raise LoadError(f"{foreign.name} must take images [B, 3, H, W] or [B, H, W, 3]; {name} is {shown}")
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        what = TensorProto.DataType.Name(kind)
        raise LoadError(f"{foreign.name} takes images as {what}; export it with a float input, normalized outside")


def _size(foreign: Foreign, own: tuple[int | None, ...], asked: tuple[int, int] | None) -> tuple[int, int]:
    if asked is None:
        height, width = own
        if height is None or width is None:
            raise LoadError(f"{foreign.name} takes images of any size; pass --input-size, or --preprocess with a size")
        return height, width
    if any(mine is not None and mine != theirs for mine, theirs in zip(own, asked, strict=True)):
        raise LoadError(
            f"{foreign.name} was exported for images {['?' if s is None else s for s in own]}, asked for {list(asked)}"
            "; drop --input-size, or export it again"
        )
    return asked


def _output(foreign: Foreign, asked: str | None) -> str:
    from onnx import TensorProto

    graph = foreign.model.graph
    names = [o.name for o in graph.output]
    if asked is None and len(names) > 1:
        raise LoadError(f"{foreign.name} gives {listed(names)}; name the one to keep: {foreign.name}#{names[0]}")
    if asked is not None and asked not in names:
        raise LoadError(f"{foreign.name} has no output {asked!r}{did_you_mean(asked, names)}; it gives {listed(names)}")
    kept = graph.output[0 if asked is None else names.index(asked)]
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    if kept.type.tensor_type.elem_type not in floats:
        raise LoadError(f"{foreign.name}: output {kept.name} is no float tensor; export the class scores")
    copy = type(kept).FromString(kept.SerializeToString())
    for dim in copy.type.tensor_type.shape.dim:
        dim.Clear()
    del graph.output[:]
    graph.output.append(copy)
    return str(copy.name)
