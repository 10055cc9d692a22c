"""The demo of edgevit: a small ViT digit classifier, its weights and its images.

Everything here works offline: the images are made from the handwritten digits that scikit-learn ships, and
the weights lie beside the code. Importing this package loads neither torch nor timm nor scikit-learn; the
functions load what they need.
"""

from edgevit.demo.model import CLASSES, PREPROCESS, WEIGHTS, build, load
from edgevit.demo.scenes import labelled_scenes, scene, write_images

__all__ = ["CLASSES", "PREPROCESS", "WEIGHTS", "build", "labelled_scenes", "load", "scene", "write_images"]
