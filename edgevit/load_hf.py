"""transformers' models: a folder that `save_pretrained` wrote, or a name on the Hugging Face hub.

    hf:FOLDER                      a classifier's logits, an encoder's tokens or embedding (adapters.hf.default_output)
    hf:FOLDER#last_hidden_state    another output by its name in transformers

Only safetensors are read and no code of a repository is run. Images are prepared as preprocessor_config.json says, or
the model is refused: a wrong resize costs accuracy in silence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError, UnsupportedModel, missing_extra
from edgevit.hashes import sha256_file, sha256_state
from edgevit.load_timm import first_line
from edgevit.names import listed
from edgevit.preprocess import Preprocess, crop_share
from edgevit.quiet import quiet
from edgevit.stages import Checkpoint

if TYPE_CHECKING:
    from torch import nn

VISION = {"CLIPModel": "CLIPVisionModelWithProjection", "SiglipModel": "SiglipVisionModel"}  # of two towers, this one
NOT_READ = re.compile(  # in the file, but no part of what an encoder's output is made of
    r"^(text_model\.|text_projection\.|logit_scale|logit_bias|visual_projection\.)|(^|\.)(pooler\.|mask_token)"
)
KNOWN_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
INTERPOLATION = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))  # PIL's numbers
OUTSIDE = "pass --preprocess FILE (JSON with size, resize, crop_pct, interpolation, mean, std)"


def load_hf(
    model: str, input_size: tuple[int, int] | None = None, own_preprocess: Preprocess | None = None
) -> Checkpoint:
    """Load `hf:FOLDER` or `hf:OWNER/NAME`; `#OUTPUT` behind it names another output than the default.

    own_preprocess: the user's, instead of the repository's. Raises LoadError, MissingExtra.
    """
    from edgevit.adapters.hf import OneTensor, default_output
    from edgevit.adapters.hf_size import fit_image_size
    from edgevit.load import check_finite

    model, _, asked = model.partition("#")
    where = _place(model)
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing_extra("hf", error) from error
    with _silent(transformers):
        config = _fetch(model, lambda: transformers.AutoConfig.from_pretrained(where, trust_remote_code=False))
        cls = _model_class(model, config, transformers)
        module = _weights(model, where, cls)
        preprocess = own_preprocess or _preprocess(model, where, transformers)
    output = asked or default_output(module)
    if output is None:
        raise LoadError(f"{model} is a {cls.__name__}; edgevit loads image classifiers and vision encoders")
    check_finite(model, module.state_dict())
    try:
        fit_image_size(module, input_size or preprocess.size, asked=input_size is not None)
    except UnsupportedModel as error:
        raise LoadError(f"{model}: {error}") from error
    return Checkpoint(
        name=where.rstrip("/").rpartition("/")[2] or where,
        arch=f"hf:{cls.__name__}",
        sha256=_hash(where, module),
        preprocess=preprocess,
        source=Path(where) if Path(where).is_dir() else None,
        module=OneTensor(module, output).eval(),
        labels=labels(config, module) if output == "logits" else None,
    )


def _place(model: str) -> str:
    """The folder or the hub's name behind `hf:`."""
    where = model.removeprefix("hf:")
    folder = Path(where)
    if where and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LoadError(f"{model}: {folder} has no config.json; give the folder that save_pretrained wrote")
        return str(folder.resolve())
    if folder.exists() or folder.is_absolute() or where.startswith((".", "~")) or where.count("/") > 1 or not where:
        raise LoadError(
            f"{model}: there is no folder {where!r}; write hf:FOLDER (from save_pretrained) or hf:OWNER/NAME"
        )
    return where


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """No progress bars and no advice on standard error; what fails still raises."""
    own = transformers.utils.logging
    bars = own.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]  # with all below them
    levels = [logger.level for logger in loggers]
    own.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with quiet():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            own.enable_progress_bar()


def _fetch(model: str, read: Callable[[], Any]) -> Any:
    """Read one part of a repository; what the libraries raise becomes one line."""
    try:
        return read()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        raise LoadError(
            f"{model} cannot be read ({first_line(error)}); without a network give hf:FOLDER, a folder that "
            "save_pretrained wrote"
        ) from error
    except Exception as error:
        # Error classes of the hub's client and of safetensors, which are not public in one place.
        if not type(error).__module__.startswith(("huggingface_hub", "httpx", "requests", "safetensors", "builtins")):
            raise
        raise LoadError(f"{model} cannot be read ({first_line(error)}); save or download it again") from error


def _model_class(model: str, config: Any, transformers: Any) -> Any:
    """The class that `architectures` in config.json names."""
    names = list(getattr(config, "architectures", None) or ())
    if not names:
        raise LoadError(f"{model}: config.json names no architectures; save the model with save_pretrained")
    name = VISION.get(names[0], names[0])
    cls: Any = getattr(transformers, name, None)
    if transformers.PreTrainedModel not in getattr(cls, "__mro__", ()):
        raise LoadError(f"{model} is a {names[0]}, which transformers {transformers.__version__} does not have")
    if cls.main_input_name != "pixel_values":
        raise LoadError(f"{model} is a {names[0]}, which takes no images; edgevit loads image classifiers and encoders")
    return cls


def _weights(model: str, where: str, cls: Any) -> nn.Module:
    """The model with all of its weights from safetensors, float32."""
    import torch

    # transformers' own pooler is not what an encoder returns here, and some encoders were saved without it
    options = {"add_pooling_layer": False} if cls.__name__ in ("ViTModel", "DeiTModel", "BeitModel") else {}
    module, info = _fetch(
        model,
        lambda: cls.from_pretrained(
            where,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        ),
    )
    missing = sorted(info["missing_keys"])
    strange = sorted(k for k in info["unexpected_keys"] if not NOT_READ.search(k))
    if missing or strange:
        raise LoadError(
            f"{model} does not fit {cls.__name__}: {len(missing)} keys missing ({listed(missing) or 'none'}), "
            f"{len(strange)} unexpected ({listed(strange) or 'none'})"
        )
    weights: nn.Module = module.eval()
    return weights


def _hash(where: str, module: nn.Module) -> str:
    file = Path(where) / "model.safetensors"
    return sha256_file(file) if file.is_file() else sha256_state(module.state_dict())


def labels(config: Any, module: nn.Module) -> tuple[str, ...] | None:
    """Class names of config.id2label, in order; None where they are numbered only."""
    named: Mapping[Any, Any] = getattr(config, "id2label", None) or {}
    names = [str(named[key]).replace("\n", " ") for key in sorted(named, key=int)]
    if not names or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    return tuple(names)


def _preprocess(model: str, where: str, transformers: Any) -> Preprocess:
    """The repository's image processor, with the defaults of its class filled in."""
    folder = Path(where)
    if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
        raise LoadError(f"{model}: {folder} has no preprocessor_config.json; {OUTSIDE}")
    read = transformers.AutoImageProcessor.from_pretrained
    processor = _fetch(model, lambda: read(where, trust_remote_code=False))
    try:
        return to_preprocess(processor.to_dict())
    except (LoadError, KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"{model}: preprocessor_config.json cannot be expressed ({first_line(error)}); {OUTSIDE}"
        ) from error


def to_preprocess(values: Mapping[str, Any]) -> Preprocess:
    """A transformers image processor's settings as a `Preprocess`. Raises LoadError for what that cannot say.

    >>> to_preprocess({"do_resize": True, "size": {"height": 32, "width": 48}, "resample": 2, "do_normalize": False,
    ...                "do_rescale": True, "rescale_factor": 1 / 255}).resize
    'squash'
    """
    other = sorted(k for k, v in values.items() if k.startswith("do_") and v and k not in KNOWN_STEPS)
    if other or values.get("crop_pct") is not None:
        raise LoadError(f"it asks for {listed(other) or 'crop_pct'}")
    if not values.get("do_resize"):
        raise LoadError("it does not resize, and a program takes one size")
    if not values.get("do_rescale") or abs(values["rescale_factor"] * 255 - 1) > 1e-6:
        raise LoadError(f"pixels are not divided by 255 (rescale_factor={values.get('rescale_factor')})")
    normalize = values.get("do_normalize")
    size, crop_pct, resize = _geometry(values)
    return Preprocess(
        size=size,
        resize=resize,  # type: ignore[arg-type]
        crop_pct=crop_pct,
        interpolation=INTERPOLATION[int(values["resample"])],
        mean=tuple(values["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=tuple(values["image_std"]) if normalize else (1.0, 1.0, 1.0),
    )


def _geometry(values: Mapping[str, Any]) -> tuple[tuple[int, int], float, str]:
    """(size, crop_pct, resize) of resizing and cropping."""
    given = values["size"]
    sides = {key: given[key] for key in given if given[key] is not None}
    short = int(sides.get("shortest_edge", 0))
    if set(sides) not in ({"height", "width"}, {"shortest_edge"}):
        raise LoadError(f"size={dict(sides)} is not height and width, nor shortest_edge")
    full = (short, short) if short else (int(sides["height"]), int(sides["width"]))
    if not values.get("do_center_crop"):
        if short:
            raise LoadError(f"shortest_edge={short} without a crop gives images of any shape")
        return full, 1.0, "squash"
    crop = (int(values["crop_size"]["height"]), int(values["crop_size"]["width"]))
    if crop[0] * full[1] != crop[1] * full[0] or crop[0] > full[0]:
        raise LoadError(f"a crop of {crop} out of {full} is not of the same shape and smaller")
    return crop, crop_share(crop[0], full[0]), "shortest" if short else "squash_crop"
