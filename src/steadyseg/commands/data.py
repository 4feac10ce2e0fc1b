"""The commands data check and data render."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from steadyseg import console
from steadyseg.arguments import UsageError
from steadyseg.commands.choices import read_size


def data_check(source: str, *, root: str | None = None, split: str = "train") -> int:
    """Audit a data set; the exit status is 1 when something is wrong.

    Args:
        source: data set by name.
        root: its folder; $STEADYSEG_DATA and its name if not given.
        split: which part of it.
    """
    from steadyseg.data import SourceConfig, open_source
    from steadyseg.data.check import check

    found = open_source(SourceConfig(source=source, root=root, split=split))
    stored = sum(found.length(name) if found.files(name) else 3 for name in found.names)
    with console.progress(f"{source} {split}", stored) as advance:
        findings = check(found, on_frame=advance)
    if findings:
        rows = console.table("kind", "file", "what")
        for finding in findings:
            rows.add_row(finding.kind, escape(finding.file), escape(finding.text))
        console.out.print(rows)
    counts = ((len(found.names), "video"), (stored, "frame"), (len(findings), "finding"))
    videos, frames, wrong = (f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts)
    console.line(f"{source} {split}: {videos}, {frames} looked at, {wrong}")
    return 1 if findings else 0


def data_render(
    out: str, *, size: str = "360x480", length: int = 75, video: int = 0, split: str = "val", overwrite: bool = False
) -> None:
    """Render a made-up street scene as a video.

    Args:
        out: the video file.
        size: height x width of a frame.
        length: number of frames.
        video: which scene of the split, from 0.
        split: train, val or test.
        overwrite: replace an existing output.
    """
    from steadyseg.data.streets import StreetsSource
    from steadyseg.engine.predict import render

    if length < 1 or video < 0:
        raise UsageError("data render: expected --length of at least 1 and --video of at least 0")
    source = StreetsSource(split=split, size=read_size(size, "--size"), length=length, videos=video + 1)
    with console.progress(Path(out).name, length) as advance:
        render(source, source.names[video], out=Path(out), overwrite=overwrite, on_frame=advance)
    console.line(out)
