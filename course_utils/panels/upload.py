"""The panel of homework 01: a photo of one's own, or one that is already here."""

from typing import Any

import ipywidgets as widgets
import numpy as np
from numpy.typing import NDArray

from course_utils import images
from course_utils.panels.canvas import Canvas
from course_utils.panels.panel import WIDTH, Panel, choice, columns
from course_utils.panels.pictures import pixels_of
from course_utils.plotting import ORANGE
from course_utils.worlds import photographs

# Such a file breaks the connection to the kernel, which then hears of nothing.
LIMIT = "Not above 10 MB; for a larger file: panels.photo(&quot;its path&quot;)"


class Photo(Panel):
    """The panel of `photo`; `image` is the picture that it shows, (H, W, 3) uint8."""

    image: NDArray[np.uint8]

    def __init__(self, image: Any = None) -> None:
        own = {} if image is None else {"your picture": pixels_of(image)}
        # A photograph is read when it is chosen.
        self._sources: dict[str, Any] = {**own, **{name: name for name in photographs.NAMES}}
        upload = widgets.FileUpload(
            accept="image/*", description="a photo of your own", layout=widgets.Layout(width=WIDTH)
        )
        controls = {"picture": choice("picture", [*self._sources]), "upload": upload}
        super().__init__(
            "photo",
            controls,
            self._shown,
            linked={"upload": self._uploaded},
            arranged=columns([*controls.values(), widgets.HTML(LIMIT)]),
        )
        upload.observe(self._refused, "error")

    def _uploaded(self, files: Any) -> dict[str, Any]:
        """Put an uploaded file among the pictures, and choose it."""
        if not files:
            return {}
        name, content = str(files[-1]["name"]), bytes(files[-1]["content"])
        try:
            pixels = images.load_image(content)
        except ValueError as error:
            said = str(error).replace("source: what was given", f"upload: {name}")
            with self._pause():
                self.controls["upload"].value = ()  # the button counts what was taken
            raise ValueError(said) from None
        self._sources[name] = pixels
        with self._pause():
            self.controls["picture"].options = [*self._sources]
        return {"picture": name}

    def _refused(self, change: Any) -> None:
        """Say what went wrong in the browser, before the file came here."""
        if change.new:
            self._say(ValueError(f"upload: the browser could not send the file ({change.new})."))

    def _shown(self, picture: str, upload: Any) -> Canvas:
        self.image = pixels = pixels_of(self._sources[picture])
        height, width = pixels.shape[:2]
        zoom = min(480 / width, 320 / height)
        canvas = Canvas(480, 364)
        name = picture if len(picture) <= 40 else picture[:39] + "…"
        below = f"{height} × {width} pixels; a model gets the square"
        # Thin panoramas are shown at least one pixel high or wide.
        wide, tall = max(1, width * zoom), max(1, height * zoom)
        canvas.figure(0, 0, wide, pixels, name, below, height=tall)
        side, left, top = min(height, width), (width - height) // 2, (height - width) // 2
        square = (max(0, left) * zoom, 44 + max(0, top) * zoom, side * zoom, side * zoom)
        canvas.box(*square, edge=ORANGE, line=2)
        canvas.alt = (
            f"{picture}, {height} × {width} pixels. What a model gets of it, the square of "
            f"{side} × {side} pixels in the middle, is marked."
        )
        return canvas


def photo(image: Any = None) -> Photo:
    """A photo of one's own by a click, or one of the examples; it is then `.image`.

    Any file that `images.load_image` reads; for any other a sentence says why it cannot be read,
    and the picture stays what it was. The browser's way to the kernel has an end at about 10 MB:
    for a larger file give its path as `image`, photo("my_photo.jpg").
    """
    return Photo(image)
