"""Classify images with a compiled engine: `Classifier().run(image)`."""

from edgevit.embed.app_python.classifier import Classifier, Prediction
from edgevit.embed.app_python.errors import Refused

__all__ = ["Classifier", "Prediction", "Refused"]
