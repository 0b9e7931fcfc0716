"""Small files that take gigabytes or hours to decode."""

import struct
from fractions import Fraction
from pathlib import Path

import av


def build_gif(width: int = 16_000, height: int = 16_000) -> bytes:
    """A few bytes that announce a picture of that size."""
    size = struct.pack("<HH", width, height)
    screen = b"GIF89a" + size + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    return screen + b"\x2c\0\0\0\0" + size + b"\0" + b"\x02\x02\x4c\x01\x00" + b"\x3b"


def make_many_frames(path: Path, frames: int = 60_000, side: int = 1024) -> Path:
    """A video whose one moving picture is repeated; its header tells of 16 x 16 pixels and 1 s."""
    still = av.VideoFrame(side, side, "yuv420p")
    encoder = av.CodecContext.create("libvpx", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = side, side, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 1000), Fraction(1000)
    encoder.options = {"lag-in-frames": "0", "error-resilient": "1"}
    contents = []
    for number in range(3):
        still.pts = number
        contents += [bytes(packet) for packet in encoder.encode(still)]
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx", rate=1000)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(frames):
            packet = av.Packet(contents[min(number, 2)])
            packet.stream, packet.is_keyframe = stream, number == 0
            packet.pts = packet.dts = number * 1000 // frames
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    return path
