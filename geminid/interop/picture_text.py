"""The table of Gemma 3 with pictures: decoder, picture encoder, projection."""

from __future__ import annotations

from geminid.interop.table import under
from geminid.interop.text import DECODER
from geminid.interop.towers import PROJECTION, SIGLIP

PICTURE_TEXT = (
    *under(DECODER, "decoder/", "language_model.model."),
    *under(SIGLIP, "vision/", "vision_tower.vision_model."),
    *under(PROJECTION, "projection/", "multi_modal_projector."),
)
