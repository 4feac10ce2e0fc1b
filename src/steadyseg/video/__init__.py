"""Video in and out: read any video or folder of images, draw on it, write it; memory does not grow with its length."""

from steadyseg.video.contact_sheet import ContactSheet, contact_sheet, flicker
from steadyseg.video.drawing import Overlay, overlay
from steadyseg.video.images import LabelWriter, image_output, write_image
from steadyseg.video.reader import VideoInfo, probe, read
from steadyseg.video.writer import Writer

__all__ = [
    "ContactSheet",
    "LabelWriter",
    "Overlay",
    "VideoInfo",
    "Writer",
    "contact_sheet",
    "flicker",
    "image_output",
    "overlay",
    "probe",
    "read",
    "write_image",
]
