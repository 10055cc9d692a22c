"""MODEL → Checkpoint: files, names of timm, transformers and torchvision, and the embedded demo.

Every loaded weight is checked: keys complete, shapes equal, values finite. Nothing is unpickled unless asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError
from edgevit.hashes import sha256_file, sha256_state
from edgevit.load_onnx import load_onnx, onnx_output
from edgevit.load_timm import check_timm, classifier, create_timm, first_line, timm_preprocess
from edgevit.names import listed
from edgevit.preprocess import Preprocess
from edgevit.stages import Checkpoint
from edgevit.trained import TRAINED

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgevit.data import Dataset

SUFFIXES = (".safetensors", ".pt", ".pth", ".pt2", ".onnx")
OBJECTS = ("Unsupported global", "Unsupported class", "Can only", "Trying to")  # how torch words a pickled object
NOT_SCRIPT = "save the model's state dict, or a program with torch.export.save"


def load(
    model: str,
    *,
    arch: str | None = None,
    preprocess: Path | None = None,
    input_size: tuple[int, int] | None = None,
    trust_pickle: bool = False,
    keep: tuple[float, ...] | None = None,
    calib: Dataset | None = None,
) -> Checkpoint:
    """Load MODEL: a file (see SUFFIXES), `timm:NAME`, `hf:FOLDER`, `torchvision:NAME`, or `demo`.

    `model.onnx#OUTPUT` names one of several outputs.
    arch: `timm:NAME`, `torchvision:NAME` or a trained architecture (`edgevit.load_trained`) of a bare state dict.
    input_size: (height, width) other than its own.
    keep, calib: how many tokens the masks of an ONNX file keep (`edgevit.from_onnx.keep`).
    Raises LoadError, MissingExtra.
    """
    own = None if preprocess is None else _read_preprocess(preprocess)
    if keep is not None and onnx_output(model) is None:
        raise LoadError(f"--keep sets token counts of an .onnx file; {model} is reduced with --reduce")
    if model == "demo":
        checkpoint = _load_demo()
    elif model.startswith("hf:"):
        from edgevit.load_hf import load_hf

        checkpoint = load_hf(model, input_size, own)
    elif model.startswith("torchvision:"):
        from edgevit.load_torchvision import load_torchvision

        checkpoint = load_torchvision(model, input_size)
    elif model.startswith("timm:"):
        checkpoint = _load_timm(model, input_size)
    elif (onnx := onnx_output(model)) is not None:
        size = input_size or (None if own is None else own.size)
        checkpoint = load_onnx(_existing(onnx[0]), onnx[1], size, own, keep, calib)
    else:
        checkpoint = _load_file(Path(model), arch, input_size, trust_pickle)
    if own is not None:
        checkpoint = replace(checkpoint, preprocess=own)
    if input_size is not None and input_size != checkpoint.preprocess.size:
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, size=input_size))
    return checkpoint


def _read_preprocess(path: Path) -> Preprocess:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"cannot read --preprocess {path}: {first_line(error)}") from error
    return Preprocess.from_json(text, str(path))


def _load_demo() -> Checkpoint:
    from edgevit.demo.model import PREPROCESS, WEIGHTS
    from edgevit.demo.model import load as load_model

    return Checkpoint("demo", "demo", sha256_file(WEIGHTS), Preprocess.from_dict(PREPROCESS), WEIGHTS, load_model())


def _load_timm(name: str, input_size: tuple[int, int] | None) -> Checkpoint:
    """Pretrained weights from timm's hub."""
    module = create_timm(name, num_classes=None, input_size=input_size, pretrained=True)
    state = module.state_dict()
    check_finite(name, state)
    return Checkpoint(name, name, sha256_state(state), timm_preprocess(module), None, module.eval())


def _existing(path: Path) -> Path:
    if not path.exists():
        raise LoadError(
            f"{path} does not exist; MODEL is a file ({', '.join(SUFFIXES)}), timm:NAME, hf:FOLDER, torchvision:NAME "
            "or demo"
        )
    if path.is_dir():
        raise LoadError(f"{path} is a folder; MODEL is one file ({', '.join(SUFFIXES)})")
    return path


def _load_file(path: Path, arch: str | None, input_size: tuple[int, int] | None, trust_pickle: bool) -> Checkpoint:
    _existing(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise LoadError(f"{path}: unknown ending {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if suffix == ".pt2":
        return _load_program(path, trust_pickle)
    metadata: Mapping[str, str] = {}
    if suffix == ".safetensors":
        state, metadata = read_safetensors(path)
    else:
        state = _read_torch(path, trust_pickle)
    if not isinstance(state, Mapping):
        return _from_module(path, state)
    return _from_state(path, state, metadata, arch, input_size)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """Tensors and metadata; a truncated or corrupt file is named as such."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, struct.error, OSError) as error:
        raise LoadError(f"{path} is corrupt or truncated ({error}); copy or download it again") from error


def _read_torch(path: Path, trust_pickle: bool) -> Any:
    """A state dict by `weights_only`, or whatever a trusted pickle holds."""
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which gets an error of its own below
            state = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        if text.startswith(OBJECTS):
            raise LoadError(
                f"{path} holds pickled Python objects, and unpickling runs code from the file; save a state dict, or "
                "pass --trust-pickle if you trust its author"
            ) from error
        raise LoadError(f"{path} is corrupt or not a PyTorch file ({text[:160]}); copy or download it again") from error
    except (ImportError, AttributeError) as error:
        raise LoadError(f"{path} was pickled from code that is not importable here ({error}); install it") from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        if "TorchScript" in str(error):
            raise LoadError(f"{path} is a TorchScript archive; {NOT_SCRIPT}") from error
        raise LoadError(f"{path} is corrupt or truncated ({first_line(error)}); copy or download it again") from error
    if isinstance(state, torch.jit.ScriptModule):
        raise LoadError(f"{path} is a TorchScript archive; {NOT_SCRIPT}")
    for key in ("state_dict", "model_state_dict", "model", "model_ema"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            return state[key]
    return state


def _from_module(path: Path, module: Any) -> Checkpoint:
    """A trusted pickle that held a whole module."""
    from torch import nn

    if not isinstance(module, nn.Module):
        raise LoadError(f"{path} holds a {type(module).__name__}; expected a state dict or an nn.Module")
    check_finite(str(path), module.state_dict())
    preprocess = timm_preprocess(module)
    return Checkpoint(path.stem, None, sha256_file(path), preprocess, path, module.float().eval())


def _from_state(
    path: Path,
    state: Mapping[str, Any],
    metadata: Mapping[str, str],
    arch: str | None,
    input_size: tuple[int, int] | None,
) -> Checkpoint:
    """A state dict and the architecture it belongs to."""
    import torch

    strays = [str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if strays or not state:
        why = f"these entries are no named tensors: {listed(strays)}" if strays else "it is empty"
        raise LoadError(f"{path} is not a state dict ({why}); save model.state_dict()")
    arch = arch or metadata.get("arch")
    if arch is None:
        raise LoadError(f"{path} does not name its architecture; pass --arch timm:NAME or torchvision:NAME")
    if arch == "demo":
        from edgevit.demo.model import PREPROCESS, build

        module, default = build(), Preprocess.from_dict(PREPROCESS)
    elif arch.startswith("torchvision:"):
        from edgevit.load_torchvision import build_torchvision

        module, default, state = build_torchvision(arch, state, input_size)
    elif arch.partition(":")[0] in TRAINED:
        from edgevit.load_trained import build_trained

        module, default, state = build_trained(arch, state, metadata, path, input_size)
    else:
        check_timm(arch)
        classes = _classes(path, metadata, state, arch)
        module = create_timm(arch, classes, input_size, pretrained=False)
        default = timm_preprocess(module)
    fill(module, state, path, arch, fit_positions=input_size is not None)
    preprocess = default
    if "preprocess" in metadata:
        preprocess = Preprocess.from_json(metadata["preprocess"], f"{path} metadata")
    return Checkpoint(path.stem, arch, sha256_file(path), preprocess, path, module.float().eval())


def _classes(path: Path, metadata: Mapping[str, str], state: Mapping[str, torch.Tensor], arch: str) -> int | None:
    """num_classes from metadata, else from the weights of the architecture's classifier."""
    if "num_classes" in metadata:
        given = metadata["num_classes"]
        if not given.isdecimal():
            raise LoadError(f"{path}: metadata num_classes={given!r} is not a whole number")
        return int(given)
    for key in (f"{name}.weight" for name in classifier(arch)):
        if key in state and state[key].ndim >= 2:
            return int(state[key].shape[0])
    return None


def fill(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path, arch: str, fit_positions: bool) -> None:
    """Load strictly; name what is missing, unexpected, misshapen or not finite."""
    check_finite(str(path), state)
    if fit_positions and hasattr(module, "patch_embed"):
        from timm.models.vision_transformer import checkpoint_filter_fn

        state = checkpoint_filter_fn(dict(state), module)  # resamples position embeddings to the new grid
    expected = module.state_dict()
    missing, unexpected = [k for k in expected if k not in state], [k for k in state if k not in expected]
    if missing or unexpected:
        raise LoadError(
            f"{path} does not fit {arch}: {len(missing)} keys missing ({listed(missing) or 'none'}), "
            f"{len(unexpected)} unexpected ({listed(unexpected) or 'none'}); is --arch right?"
        )
    wrong = [
        f"{k} is {list(state[k].shape)}, the model has {list(v.shape)}"
        for k, v in expected.items()
        if state[k].shape != v.shape
    ]
    if wrong:
        raise LoadError(f"{path} does not fit {arch}: {listed(wrong)}; is --arch (or --input-size) right?")
    module.load_state_dict({k: v.to(expected[k].dtype) for k, v in state.items()})


def check_finite(name: str, state: Mapping[str, Any]) -> None:
    """Refuse NaN and infinite weights."""
    import torch

    bad = [k for k, v in state.items() if torch.is_floating_point(v) and not bool(torch.isfinite(v).all())]
    if bad:
        raise LoadError(f"{name} has NaN or infinite weights in {listed(bad)}; the training run diverged")


def _load_program(path: Path, trust_pickle: bool) -> Checkpoint:
    """A `torch.export` archive: the graph as data."""
    from edgevit.load_program import read_program

    program = read_program(path, trust_pickle)
    inputs = [n for n in program.graph_signature.user_inputs if isinstance(n, str)]
    node = next((n for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs), None)
    value = node.meta.get("val") if node is not None else None
    shape = tuple(getattr(value, "shape", ()))
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
        raise LoadError(f"{path} must take one image tensor [B, 3, H, W]; it takes {len(inputs)} inputs, shape {shape}")
    if not all(isinstance(s, int) for s in shape):
        raise LoadError(f"{path} has a dynamic input shape {shape}; export it again with static shapes")
    if len(program.graph_signature.user_outputs) != 1:
        count = len(program.graph_signature.user_outputs)
        raise LoadError(f"{path} gives {count} outputs; export a model that returns one tensor, the class scores")
    check_finite(str(path), program.state_dict)
    preprocess = Preprocess(size=(int(shape[2]), int(shape[3])))
    return Checkpoint(path.stem, None, sha256_file(path), preprocess, path, None, program)
