"""Draw the pictures of docs/methods, one for each method: python docs/draw_methods.py

Time runs from left to right, a column for each frame. In a column the image runs down through the four stages of the
backbone and the parts of the method. What outlives its frame is a bar below the columns: written from the side of a
box, read into the side of another. In this file: what a picture says, the pictures, how they become shapes, and shapes
become SVG.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent / "methods"
TONES = {
    "frame": ("#ffffff", "#4a4a46"),
    "backbone": ("#cfe0f5", "#33639c"),
    "head": ("#d3ecd9", "#2f7047"),
    "own": ("#fce0ba", "#a56310"),
    "skipped": ("#fbfaf7", "#a9a8a1"),
    "memory": ("#e3d8f5", "#6a4aa8"),
    "paper": ("#fbfaf7", "#d9d7cf"),
}
"""Fill and outline by what a box stands for. The paper makes a picture read alike on white and on dark pages."""
INK, FAINT, KEPT, AHEAD = "#23231f", "#6d6c66", TONES["memory"][1], "#b0352b"
"""Text and arrows; what is less; what was remembered; what comes from a later frame."""


# ---- what a picture says -----------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A box of the method in one frame."""

    text: str
    """One or two lines, parted by a line break."""
    tone: str = "own"
    sees_frame: bool = False
    """It reads the image itself."""


class Frame(NamedTuple):
    """A column."""

    title: str
    parts: dict[str, Part]
    """By row; what is left out does not run on this frame."""
    stages: str = "1234"
    """The stages of the backbone that run; "b" is the first block of stage 1 alone."""
    is_key: bool = False


class Memory(NamedTuple):
    """What outlives its frame."""

    text: str
    column: int
    """The column that makes it."""
    rows: tuple[str, ...]
    """The boxes there that make it."""
    read: tuple[tuple[int, str], ...]
    """Columns and rows of the boxes that read it."""
    lane: int = 0
    """Which line of bars it lies on, 0 at the top."""

    @property
    def leaves_after(self) -> bool:
        """Whether it leaves its frame on the right, as it does unless only earlier frames read it."""
        return any(reader > self.column for reader, _ in self.read)


class Scene(NamedTuple):
    """A picture."""

    title: str
    frames: tuple[Frame, ...]
    memories: tuple[Memory, ...] = ()
    heights: tuple[int, ...] = (56, 42, 30, 20)
    """Of the boxes of the four stages: their maps shrink from stage to stage, unless they are dilated."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows of parts from top to bottom: those of the fullest frame."""
        return tuple(max((frame.parts for frame in self.frames), key=len))


# ---- the pictures ------------------------------------------------------------------------------------------------


def same(names: str, **parts: Part) -> tuple[Frame, ...]:
    """Frames on which the same happens, by the words of their names."""
    return tuple(Frame(f"frame {name}", parts) for name in names.split())


def interval(key: dict[str, Part], between: dict[str, Part], stages: str) -> tuple[Frame, ...]:
    """Four frames of one key interval, and the key frame after it."""
    after = tuple(Frame(f"frame {number}", between, stages) for number in (1, 2, 3))
    return (Frame("key frame 0", key, is_key=True), *after, Frame("key frame 4", key, is_key=True))


def between(*rows: str) -> tuple[tuple[int, str], ...]:
    """The boxes of some rows in the frames between the key frames."""
    return tuple((column, row) for column in (1, 2, 3) for row in rows)


DILATED = (56, 42, 42, 42)
CLASSIFY = Part("classifier", "head")
FUSE, FUSE_KEPT = Part("fuse stages 1 to 4", "head"), Part("fuse 1, 2 with 3, 4\nof the key frame", "head")
WHOLE, REUSED = {"fuse": FUSE, "classify": CLASSIFY}, {"fuse": FUSE_KEPT, "classify": CLASSIFY}
MOVED = {"first": Part("optical flow\nto the key frame", sees_frame=True), "move": Part("move the scores")}
MENDED = {
    "fuse": FUSE_KEPT,
    "correlate": Part("correlate stage 2\nwith the key frame's"),
    "attend": Part("attention where it\ndoes not correlate"),
    "classify": CLASSIFY,
    "mix": Part("mix with the key\nframe's scores"),
}
MENDING = ("fuse", "correlate", "attend", "mix")
OWN = {"fuse": Part("fuse with the own\nshallow feature"), "head": Part("head", "head")}
COMMON = {"common": Part("common feature"), **OWN}
DSSA = {
    "ssea": Part("SSEA: fuse stages 1 to 4,\nrefine; keeps S"),
    "coarse": Part("coarse step on A and S\n3 frames before; keeps A"),
    "fine": Part("fine step on A 3 and\nS 6 frames before"),
    "head": Part("head of four variates", "head"),
}
MOTION = {
    "reduce": Part("stages 2, 3, 4\nto one width"),
    "motion": Part("motion: attention over\nstage 4 of three frames"),
    "state": Part("state: attention over\nstages 2 to 4 and motion"),
    "assign": Part("each pixel to the nearest\nregion descriptor"),
}

SCENES = {
    "segformer": Scene("SegFormer: every frame alone", same("t t+1 t+2", **WHOLE)),
    "pspnet": Scene(
        "PSPNet: every frame alone",
        same("t t+1 t+2", pool=Part("pyramid pooling"), head=Part("head", "head")),
        heights=DILATED,
    ),
    "reuse": Scene(
        "Reuse: the deep stages run on key frames only",
        interval(WHOLE, REUSED, stages="12"),
        (Memory("share of stages 3 and 4 in the fusion", 0, ("fuse",), between("fuse")),),
    ),
    "flow": Scene(
        "Flow: between key frames only optical flow runs",
        interval({"first": Part("decoder", "head")}, MOVED, stages=""),
        (Memory("scores and image of key frame 0", 0, ("first",), between("first", "move")),),
    ),
    "tfc": Scene(
        "TFC: reuse, put right where the frame has changed",
        interval(WHOLE, MENDED, stages="12"),
        (Memory("stages 2, 3, 4 and scores of key frame 0", 0, tuple(WHOLE), between(*MENDING)),),
    ),
    "dcfm": Scene(
        "DCFM: the deep common feature comes from key frames",
        tuple(
            Frame(f"frame {n}", OWN, "b") if n % 2 else Frame(f"key frame {n}", COMMON, is_key=True) for n in range(5)
        ),
        (
            Memory("common feature 0", 0, ("common",), ((1, "fuse"),)),
            Memory("common feature 2", 2, ("common",), ((1, "fuse"), (3, "fuse"))),
            Memory("common feature 4", 4, ("common",), ((3, "fuse"),)),
        ),
    ),
    "sdcpc": Scene(
        "SD-CPC: frame t reads the frames t-3 and t-6",
        same("t-6 t-3 t", **DSSA),
        (
            Memory("S of t-3", 1, ("ssea",), ((2, "coarse"),)),
            Memory("A of t-3", 1, ("coarse",), ((2, "coarse"), (2, "fine")), lane=1),
            Memory("S of t-6", 0, ("ssea",), ((1, "coarse"), (2, "fine")), lane=2),
        ),
    ),
    "msaf": Scene(
        "MSAF: the motion of three frames, the state of one",
        same("t-2 t-1 t", **MOTION),
        (
            Memory("stage 4 of t-1", 1, ("reduce",), ((2, "motion"),)),
            Memory("stage 4 of t-2", 0, ("reduce",), ((1, "motion"), (2, "motion")), lane=1),
        ),
        DILATED,
    ),
}
"""By the name of the method's file."""


# ---- shapes ------------------------------------------------------------------------------------------------------


class Rect(NamedTuple):
    """A rectangle with round corners; `role` is "paper", "box", "bar", "key" (of the legend) or "inside" a box."""

    role: str
    x: float
    y: float
    width: float
    height: float
    tone: str
    is_thick: bool = False

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """Its centre, across."""
        return self.x + self.width / 2


class Arrow(NamedTuple):
    """A line along the axes, with a head at its end."""

    points: tuple[tuple[float, float], ...]
    stroke: str = INK

    @property
    def head(self) -> tuple[tuple[float, float], ...]:
        """The three corners of its head."""
        (x0, y0), (x, y) = self.points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        back, side = (x - 7 * dx, y - 7 * dy), (3.5 * dy, 3.5 * dx)
        return (x, y), (back[0] - side[0], back[1] + side[1]), (back[0] + side[0], back[1] - side[1])


class Text(NamedTuple):
    """One line of text, centred on x or beginning there; y is its base line."""

    x: float
    y: float
    text: str
    fill: str = INK
    size: int = 12
    is_bold: bool = False
    is_centred: bool = True


Shape = Rect | Arrow | Text


def text_width(text: str, size: int = 12) -> float:
    """At most how wide a text is: that of DejaVu Sans, the widest of the usual fonts."""
    return size * sum(0.37 if c in "ijlItf.,:;()'-/r " else 0.9 if c in "mwMW+GOQDH" else 0.64 for c in text)


# ---- from a scene to shapes --------------------------------------------------------------------------------------

WIDTH, MARGIN, TOP = 900, 14, 46
"""Of the picture; left and right of the columns; above them."""
HEADER, STAGES, LINE, GAP, BAR = 26, 56, 15, 14, 22
"""Heights: a frame's title, the backbone, a line of text in a box, what lies between two boxes, and a bar."""
NEAREST, APART = 11, 9
"""Distance from a box to the first line beside it, and of two such lines."""


class Layout:
    """Where everything of a scene lies."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.lanes = 1 + max((memory.lane for memory in scene.memories), default=-1)
        self.pitch = (WIDTH - 2 * MARGIN) / len(scene.frames)
        self.inner = min(self.pitch - 2 * (NEAREST + APART * max(self.lanes - 1, 0) + 8), 166)
        self.stages_y = TOP + HEADER + GAP
        y = self.stages_y + STAGES + GAP + 4
        self.rows: dict[str, tuple[float, float]] = {}
        for row in scene.rows:
            lines = max(frame.parts[row].text.count("\n") + 1 for frame in scene.frames if row in frame.parts)
            self.rows[row] = y, 12 + LINE * lines
            y += 12 + LINE * lines + GAP
        self.labels_y = y + 10
        self.lanes_y = self.labels_y + 16
        self.lane = BAR + (10 if all(map(self.fits, scene.memories)) else 26)
        self.legend_y = self.lanes_y + self.lanes * self.lane + 22
        self.height = self.legend_y + 16

    def box(self, column: int, row: str, tone: str = "own") -> Rect:
        """The box of a part; of the title in the row "title"."""
        x = MARGIN + self.pitch * (column + 0.5) - self.inner / 2
        y, height = (TOP, HEADER) if row == "title" else self.rows[row]
        return Rect("box", x, y, self.inner, height, tone)

    def beside(self, column: int, lane: int, after: bool) -> float:
        """Where the line of a lane runs, after (right of) or before a column's boxes; upper lanes are further out."""
        box, distance = self.box(column, "title"), NEAREST + APART * (self.lanes - 1 - lane)
        return box.right + distance if after else box.x - distance

    def reach(self, memory: Memory) -> tuple[float, float]:
        """Where the bar of a memory begins, and its length."""
        turns = [self.beside(memory.column, memory.lane, memory.leaves_after)]
        turns += [self.beside(reader, memory.lane, reader < memory.column) for reader, _ in memory.read]
        return min(turns) - 5, max(turns) - min(turns) + 10

    def fits(self, memory: Memory) -> bool:
        """Whether the text of a memory has room in its bar."""
        return text_width(memory.text) <= self.reach(memory)[1] - 6


def draw(scene: Scene) -> tuple[list[Shape], float]:
    """Return the shapes of a scene, from back to front, and its height."""
    layout = Layout(scene)
    shapes: list[Shape] = [Rect("paper", 0.5, 0.5, WIDTH - 1, layout.height - 1, "paper")]
    shapes.append(Text(MARGIN + 4, 28, scene.title, size=15, is_bold=True, is_centred=False))
    for column, frame in enumerate(scene.frames):
        shapes += [*draw_stages(layout, column, frame), *draw_parts(layout, column, frame)]
    for memory in scene.memories:
        shapes += draw_memory(layout, memory)
    return [*shapes, *draw_legend(layout)], layout.height


def draw_stages(layout: Layout, column: int, frame: Frame) -> Iterator[Shape]:
    """Draw a column's title and the four stages, those that do not run hollow."""
    title = layout.box(column, "title", "frame")._replace(is_thick=frame.is_key)
    yield title
    yield Text(title.middle, TOP + 17, frame.title, is_bold=frame.is_key)
    width, bottom = (layout.inner - 12) / 4, layout.stages_y + STAGES
    for number, height in enumerate(layout.scene.heights, start=1):
        runs = str(number) in frame.stages
        x = title.x + (width + 4) * (number - 1)
        box = Rect("box", x, bottom - height, width, height, "backbone" if runs else "skipped")
        yield box
        is_partly = number == 1 and frame.stages == "b"
        if is_partly:
            yield box._replace(role="inside", width=0.45 * width, tone="backbone")
        yield Text(
            x + width * (0.72 if is_partly else 0.5), bottom - height / 2 + 4, str(number), INK if runs else FAINT
        )
    if frame.stages:
        share = 0.22 if frame.stages == "b" else 0.5
        first = title.x + width * share
        last = first if frame.stages == "b" else title.x + ((width + 4) * len(frame.stages) - 4) / 2
        yield Arrow(((first, title.bottom), (first, layout.stages_y)))
        yield Arrow(((last, bottom), (last, layout.rows[next(iter(frame.parts))][0])))


def draw_parts(layout: Layout, column: int, frame: Frame) -> Iterator[Shape]:
    """Draw the parts of the method, and the way through them to the labels."""
    boxes = [layout.box(column, row, part.tone) for row, part in frame.parts.items()]
    ends = [box.y for box in boxes[1:]] + [layout.labels_y - 12]
    for box, end, part in zip(boxes, ends, frame.parts.values(), strict=True):
        yield box
        lines = part.text.split("\n")
        for number, line in enumerate(lines):
            if text_width(line) > box.width - 4:
                raise ValueError(f"'{line}' is wider than its box of {box.width:.0f}: shorten it")
            yield Text(box.middle, box.y + box.height / 2 + 4 + LINE * (number - (len(lines) - 1) / 2), line)
        if part.sees_frame:
            title, x, y = layout.box(column, "title"), box.right + NEAREST, box.y + box.height / 2
            yield Arrow(((title.right, TOP + HEADER / 2), (x, TOP + HEADER / 2), (x, y), (box.right, y)))
        yield Arrow(((box.middle, box.bottom), (box.middle, end)))
    yield Text(boxes[0].middle, layout.labels_y, "labels")


def draw_memory(layout: Layout, memory: Memory) -> Iterator[Shape]:
    """Draw the bar of a memory, the lines that write it and those that read it."""
    start, length = layout.reach(memory)
    bar = Rect("bar", start, layout.lanes_y + memory.lane * layout.lane, length, BAR, "memory")
    yield bar
    yield Text(bar.middle, bar.y + 15 if layout.fits(memory) else bar.bottom + 15, memory.text)
    x = layout.beside(memory.column, memory.lane, memory.leaves_after)
    for row in memory.rows:
        box = layout.box(memory.column, row)
        y = box.y + box.height / 2
        yield Arrow(((box.right if memory.leaves_after else box.x, y), (x, y), (x, bar.y)), KEPT)
    for column, row in memory.read:
        box, is_ahead = layout.box(column, row), column < memory.column
        x = layout.beside(column, memory.lane, is_ahead)
        y = box.y + box.height * entry(layout.scene, memory, column, row)
        yield Arrow(((x, bar.y), (x, y), (box.right if is_ahead else box.x, y)), AHEAD if is_ahead else KEPT)


def entry(scene: Scene, memory: Memory, column: int, row: str) -> float:
    """How far down the side of a box a memory enters it, 0..1: upper lanes higher, so that lines do not cross."""
    readers = [other for other in scene.memories if (column, row) in other.read]
    lanes = sorted(other.lane for other in readers if (other.column > column) == (memory.column > column))
    return (lanes.index(memory.lane) + 1) / (len(lanes) + 1)


def draw_legend(layout: Layout) -> Iterator[Shape]:
    """Explain what the picture has."""
    scene = layout.scene
    tones = {part.tone for frame in scene.frames for part in frame.parts.values()} | {"backbone"}
    tones |= {"skipped"} if any(frame.stages != "1234" for frame in scene.frames) else set()
    tones |= {"memory"} if scene.memories else set()
    names = {"backbone": "stage of the backbone", "skipped": "not run", "own": "part of this method"}
    names |= {"head": "decoder, head", "memory": "remembered"}
    x, y = MARGIN + 4.0, layout.legend_y
    for tone, name in names.items():
        if tone in tones:
            yield Rect("key", x, y - 11, 18, 13, tone)
            yield Text(x + 24, y, name, FAINT, is_centred=False)
            x += text_width(name) + 36
    if any(reader < memory.column for memory in scene.memories for reader, _ in memory.read):
        yield Arrow(((x, y - 4), (x + 20, y - 4)), AHEAD)
        yield Text(x + 26, y, "only when looking ahead", FAINT, is_centred=False)


# ---- from shapes to SVG ------------------------------------------------------------------------------------------

ROUND = {"paper": 8, "box": 4, "inside": 4, "bar": 6, "key": 2}
"""How round the corners of a rectangle are, by role."""
START = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}" '
    'role="img" font-family="Helvetica, Arial, \'Liberation Sans\', sans-serif">\n<title>{title}</title>\n'
)


def to_svg(scene: Scene) -> str:
    """Return a scene as an SVG document."""
    shapes, height = draw(scene)
    elements = "\n".join(map(element, shapes))
    return START.format(width=WIDTH, height=height, title=escape(scene.title)) + elements + "\n</svg>\n"


def element(shape: Shape) -> str:
    """Return the SVG of a shape."""
    if isinstance(shape, Rect):
        fill, stroke = TONES[shape.tone]
        look = f'fill="{fill}" stroke="{stroke}" stroke-width="{1 + shape.is_thick}" rx="{ROUND[shape.role]}"'
        look += ' stroke-dasharray="4 3"' if shape.tone == "skipped" else ""
        place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"'
        return f'<rect class="{shape.role}" {place} {look}/>'
    if isinstance(shape, Arrow):
        line, head = (" ".join(f"{x:.1f},{y:.1f}" for x, y in points) for points in (shape.points, shape.head))
        shaft = f'<polyline points="{line}" fill="none" stroke="{shape.stroke}" stroke-width="1.5"/>'
        return f'{shaft}<polygon points="{head}" fill="{shape.stroke}"/>'
    look = f'font-size="{shape.size}" fill="{shape.fill}"' + (' font-weight="bold"' if shape.is_bold else "")
    look += ' text-anchor="middle"' if shape.is_centred else ""
    return f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" {look}>{escape(shape.text)}</text>'


def main() -> None:
    """Write the files."""
    for name, scene in SCENES.items():
        (FOLDER / f"{name}.svg").write_text(to_svg(scene), encoding="utf-8")


if __name__ == "__main__":
    main()
