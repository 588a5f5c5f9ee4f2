"""Sheets of small pictures with captions: one font, one set of colours, a white background; no display is needed."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

INK, MUTED, RULE = "#1a1a1a", "#666666", "#d0d0d0"  # text, less important text, lines
# The colours of Okabe & Ito, which colour-blind readers can tell apart, without their yellow and with three darker ones.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#882255", "#999933", "#4d4d4d", "#aa4499")
TRAINED, UNTRAINED = COLOURS[0], "#8a8a8a"
RIGHT, WRONG = COLOURS[2], COLOURS[5]
TITLE, HEADING, CAPTION = 22, 17, 15  # pixels of a letter
MARGIN = 20  # pixels around a sheet


@lru_cache(maxsize=64)
def find_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib and is what its figures use; Pillow's own font where it is missing."""
    spec = find_spec("matplotlib")  # finds the folder, imports nothing
    if spec is not None and spec.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def text_width(text: str, size: int = CAPTION, bold: bool = False) -> int:
    """Pixels that one line of text takes."""
    return -int(-find_font(size, bold).getlength(text) // 1)


def line_height(size: int) -> int:
    """Pixels from one line of text to the next."""
    return round(1.3 * size)


def shorten(text: str, width: int, size: int = CAPTION, bold: bool = False) -> str:
    """The text, or its beginning and an ellipsis where it is wider than ``width`` pixels."""
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(f"{text}…", size, bold) > width:
        text = text[:-1]
    return f"{text.rstrip()}…" if text else ""


def wrap(text: str, width: int, size: int = CAPTION, bold: bool = False) -> list[str]:
    """The lines of a text that is broken at spaces to fit into ``width`` pixels; a longer word is shortened."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size, bold) <= width:
            lines[-1] = joined
        else:
            lines.append(shorten(word, width, size, bold))
    return lines


class Sheet:
    """A white picture that text, pictures, frames and lines are drawn on, in pixels from its upper left corner.

    Args:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (int(width), int(height)), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = CAPTION,
        colour: str = INK,
        bold: bool = False,
        anchor: str = "la",
        width: int | None = None,
    ) -> None:
        """Writes a line at (x, y); with ``width``, it is shortened to so many pixels.

        Args:
            x: of the point that ``anchor`` names.
            y: of the point that ``anchor`` names.
            text: one line.
            size: of letters, in pixels.
            colour: any that Pillow knows.
            bold: in bold letters.
            anchor: two letters, as Pillow's: "la" left and top, "ma" middle and top, "ra" right and top, "lm", "mm", "rm"
                in the middle of the line's height.
            width: largest width in pixels.
        """
        if width is not None:
            text = shorten(text, width, size, bold)
        self.draw.text((round(x), round(y)), text, fill=colour, font=find_font(size, bold), anchor=anchor)

    def lines(self, x: float, y: float, lines: list[str], size: int = CAPTION, **options: str | bool) -> None:
        """Writes lines below each other; ``options`` as for ``text``."""
        for number, line in enumerate(lines):
            self.text(x, y + number * line_height(size), line, size, **options)

    def text_upwards(self, x: float, y: float, text: str, size: int = CAPTION, bold: bool = False) -> None:
        """Writes a line from (x, y), the middle of its lower end, upwards."""
        width, height = text_width(text, size, bold) + 2, line_height(size)
        strip = Sheet(width, height)
        strip.text(0, height / 2, text, size, bold=bold, anchor="lm")
        self.image.paste(strip.image.rotate(90, expand=True), (round(x - height / 2), round(y - width)))

    def picture(self, x: float, y: float, picture: Image.Image, frame: str | None = None, thickness: int = 4) -> None:
        """Puts a picture at (x, y), with a frame around it where a colour is given."""
        x, y = round(x), round(y)
        if frame is not None:
            box = (x - thickness, y - thickness, x + picture.width + thickness - 1, y + picture.height + thickness - 1)
            self.draw.rectangle(box, fill=frame)
        self.image.paste(picture, (x, y))

    def box(
        self, x: float, y: float, width: float, height: float, fill: str | None, outline: str | None = None
    ) -> None:
        """A rectangle."""
        self.draw.rectangle((round(x), round(y), round(x + width) - 1, round(y + height) - 1), fill, outline)

    def line(self, x: float, y: float, x2: float, y2: float, colour: str = RULE, width: int = 1) -> None:
        """A straight line."""
        self.draw.line((round(x), round(y), round(x2), round(y2)), colour, width)

    def arrow(self, x: float, y: float, x2: float, colour: str = MUTED, width: int = 3) -> None:
        """A horizontal arrow from (x, y) to (x2, y)."""
        self.line(x, y, x2 - 8, y, colour, width)
        self.draw.polygon([(x2, y), (x2 - 12, y - 7), (x2 - 12, y + 7)], fill=colour)

    def heading(self, title: str, subtitle: str = "") -> int:
        """Writes a title and a smaller line below it at the upper left; returns the y below them."""
        width, y = self.image.width - 2 * MARGIN, MARGIN - 4
        for text, size, colour, bold in ((title, TITLE, INK, True), (subtitle, CAPTION, MUTED, False)):
            lines = wrap(text, width, size, bold)
            self.lines(MARGIN, y, lines, size, colour=colour, bold=bold)
            y += len(lines) * line_height(size) + (4 if lines else 0)
        return y + 8

    def save(self, path: str | Path, shades: int | None = None) -> Path:
        """Writes a PNG; missing folders are made.

        Args:
            path: of the file.
            shades: of each of red, green and blue, white included, for a smaller file; None keeps all 256.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = self.image
        if shades is not None:
            steps = shades - 1
            image = image.point([round(round(value * steps / 255) * 255 / steps) for value in range(256)] * 3)
        image.save(path, format="PNG", optimize=shades is not None)  # which takes a few times longer
        return path


def heading_height(title: str, subtitle: str, width: int) -> int:
    """The y that ``Sheet.heading`` returns on a sheet of this width, before the sheet is made."""
    y = MARGIN - 4
    for text, size, bold in ((title, TITLE, True), (subtitle, CAPTION, False)):
        lines = wrap(text, width - 2 * MARGIN, size, bold)
        y += len(lines) * line_height(size) + (4 if lines else 0)
    return y + 8
