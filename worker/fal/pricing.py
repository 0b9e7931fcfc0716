"""How many units fal bills for a request, as far as its input says (fal-api, section 10).

Megapixels: width times height times `num_frames` by a million, rounded up. The source is not
billed, though the file returned contains it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PIXELS = 10**6
UNIT = "megapixel"
DEFAULT_FRAMES = 121
SIZES = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
# For `auto` fal takes the source's shape; its own example is of this size.
ASSUMED_SIZE = (1280, 720)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Whole megapixels, and what was assumed where the input does not say; None if nothing was."""

    units: int
    assumed: str | None = None


def estimate_units(arguments: Mapping[str, Any]) -> Estimate:
    """The units of a request with this input; pure."""
    size, frames, assumed = arguments.get("video_size"), arguments.get("num_frames"), None
    if not isinstance(frames, int):
        frames = DEFAULT_FRAMES
    if isinstance(size, Mapping) and isinstance(size.get("width"), int):
        width, height = size["width"], size.get("height") or size["width"]
    elif size in SIZES:
        width, height = SIZES[str(size)]
    else:
        width, height = ASSUMED_SIZE
        assumed = f"video_size {size or 'auto'}: {width}x{height}"
    return Estimate(-(-width * height * frames // PIXELS), assumed)
