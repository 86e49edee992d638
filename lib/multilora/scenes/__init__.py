"""The scene testbed: procedural 32×32 images of five element categories, where what is in an image is known exactly."""

from lib.multilora.scenes.elements import ELEMENTS, names_of
from lib.multilora.scenes.renderer import render

__all__ = ["ELEMENTS", "names_of", "render"]
