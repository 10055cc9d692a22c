"""MODEL → Checkpoint: files, timm names, and the embedded demo.

Every loaded weight is checked: keys complete, shapes equal, values finite. Nothing is unpickled unless asked for.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import EdgeVitError, LoadError, missing_extra
from edgevit.names import did_you_mean, listed
from edgevit.preprocess import Preprocess
from edgevit.stages import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".pt2")
LATER = {".onnx": "a foreign ONNX file", "hf:": "a Hugging Face model", "torchvision:": "a torchvision model"}


def load(
    model: str,
    *,
    arch: str | None = None,
    preprocess: Path | None = None,
    input_size: tuple[int, int] | None = None,
    trust_pickle: bool = False,
) -> Checkpoint:
    """Load MODEL: a file (.safetensors, .pt, .pth, .pt2), `timm:NAME`, or `demo`.

    arch: `timm:NAME` of a bare state dict. input_size: (height, width) other than the architecture's own.
    Raises LoadError, MissingExtra.
    """
    if model == "demo":
        checkpoint = _load_demo()
    elif model.startswith("timm:"):
        checkpoint = _load_timm(model, input_size)
    else:
        checkpoint = _load_file(Path(model), arch, input_size, trust_pickle)
    if preprocess is not None:
        try:
            text = preprocess.read_text()
        except OSError as error:
            raise LoadError(f"cannot read --preprocess {preprocess}: {error.strerror}") from error
        checkpoint = replace(checkpoint, preprocess=Preprocess.from_json(text, str(preprocess)))
    if input_size is not None and input_size != checkpoint.preprocess.size:
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, size=input_size))
    return checkpoint


def sha256_file(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _load_file(path: Path, arch: str | None, input_size: tuple[int, int] | None, trust_pickle: bool) -> Checkpoint:
    if not path.exists():
        later = next((what for mark, what in LATER.items() if str(path).startswith(mark)), None)
        if later:
            raise LoadError(f"{path}: {later} is not read by this version; give a file, timm:NAME or demo")
        raise LoadError(f"{path} does not exist; MODEL is a file ({', '.join(SUFFIXES)}), timm:NAME or demo")
    if path.is_dir():
        raise LoadError(f"{path} is a folder; MODEL is one file ({', '.join(SUFFIXES)})")
    suffix = path.suffix.lower()
    if suffix in LATER:
        raise LoadError(f"{path}: {LATER[suffix]} is not read by this version; give the PyTorch model")
    if suffix not in SUFFIXES:
        raise LoadError(f"{path}: unknown ending {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if suffix == ".pt2":
        return _load_program(path)
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

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise LoadError(
                f"{path} holds pickled Python objects, and unpickling runs code from the file; save a state dict, or "
                "pass --trust-pickle if you trust its author"
            ) from error
        raise LoadError(f"{path} is corrupt or not a PyTorch file ({_first_line(error)})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise LoadError(f"{path} is corrupt or truncated ({_first_line(error)}); copy or download it again") from error
    except (ModuleNotFoundError, AttributeError) as error:
        raise LoadError(f"{path} was pickled from code that is not importable here ({error})") from error
    for key in ("state_dict", "model_state_dict", "model", "model_ema"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            return state[key]
    return state


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160]


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

    strays = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if strays or not state:
        raise LoadError(f"{path} is not a state dict: {listed(strays) or 'it is empty'} is no tensor")
    arch = arch or metadata.get("arch")
    if arch is None:
        raise LoadError(f"{path} does not name its architecture; pass --arch timm:NAME")
    if arch == "demo":
        from edgevit.demo.model import PREPROCESS, build

        module, default = build(), Preprocess.from_dict(PREPROCESS)
    else:
        classes = _classes(path, metadata, state)
        module = create_timm(arch, classes, input_size, pretrained=False)
        default = timm_preprocess(module)
    fill(module, state, path, arch, fit_positions=input_size is not None)
    preprocess = default
    if "preprocess" in metadata:
        preprocess = Preprocess.from_json(metadata["preprocess"], f"{path} metadata")
    return Checkpoint(path.stem, arch, sha256_file(path), preprocess, path, module.float().eval())


def _classes(path: Path, metadata: Mapping[str, str], state: Mapping[str, torch.Tensor]) -> int | None:
    """num_classes from metadata, else from a plain `head` or `head.fc` in the weights."""
    if "num_classes" in metadata:
        try:
            return int(metadata["num_classes"])
        except ValueError as error:
            raise LoadError(f"{path}: metadata num_classes={metadata['num_classes']!r} is not a number") from error
    for key in ("head.weight", "head.fc.weight"):
        if key in state and state[key].ndim == 2:
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


def _load_program(path: Path) -> Checkpoint:
    """A `torch.export` archive: code as a graph, nothing pickled."""
    import zipfile

    import torch

    try:
        program = torch.export.load(path)
    except (RuntimeError, zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
        raise LoadError(f"{path} is not a readable torch.export archive ({_first_line(error)})") from error
    inputs = [n for n in program.graph_signature.user_inputs if isinstance(n, str)]
    node = next((n for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs), None)
    value = node.meta.get("val") if node is not None else None
    shape = tuple(getattr(value, "shape", ()))
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
        raise LoadError(f"{path} must take one image tensor [B, 3, H, W]; it takes {len(inputs)} inputs, shape {shape}")
    if not all(isinstance(s, int) for s in shape):
        raise LoadError(f"{path} has a dynamic input shape {shape}; export it again with static shapes")
    check_finite(str(path), program.state_dict)
    preprocess = Preprocess(size=(int(shape[2]), int(shape[3])))
    return Checkpoint(path.stem, None, sha256_file(path), preprocess, path, None, program)


def create_timm(
    arch: str, num_classes: int | None, input_size: tuple[int, int] | None, pretrained: bool
) -> nn.Module:
    """Build a timm model by `timm:NAME`."""
    if not arch.startswith("timm:"):
        raise LoadError(f"architecture {arch!r} is not understood; write timm:NAME")
    name = arch.removeprefix("timm:")
    try:
        import timm
    except ModuleNotFoundError as error:
        raise missing_extra("timm", error) from error
    if not timm.is_model(name):
        raise LoadError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if input_size is not None:
        options["img_size"] = input_size
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        raise LoadError(f"{arch} cannot be built with {options}: {_first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise _hub_error(arch, error) from error
    except Exception as error:
        # The hub client's own error classes are many and not public; only they can arrive here while pretrained.
        if not pretrained or "hub" not in type(error).__module__ + str(error).lower():
            raise
        raise _hub_error(arch, error) from error
    return module.eval()


def _hub_error(arch: str, error: BaseException) -> EdgeVitError:
    return LoadError(
        f"the pretrained weights of {arch} could not be fetched ({_first_line(error)}); with weights on disk use "
        f"`edgevit export FILE --arch {arch}`"
    )


def timm_preprocess(module: nn.Module) -> Preprocess:
    """The architecture's own preprocessing (timm's pretrained_cfg), or ImageNet's at 224 where it has none."""
    config: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    if not config:
        return Preprocess(size=(224, 224))
    embed = getattr(module, "patch_embed", None)
    size = getattr(embed, "img_size", None) or tuple(config["input_size"][1:])
    return Preprocess(
        size=(int(size[0]), int(size[1])),
        resize="squash" if config.get("crop_mode") == "squash" else "shortest",
        crop_pct=float(config.get("crop_pct", 0.875)),
        interpolation=str(config.get("interpolation", "bicubic")),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def sha256_state(state: Mapping[str, torch.Tensor]) -> str:
    """Hash of weights that came from no file: names, dtypes, shapes and bytes in order."""
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
