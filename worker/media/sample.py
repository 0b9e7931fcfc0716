"""A short real clip with sound, for those who have none at hand."""

from pathlib import Path

WIDTH, HEIGHT, FPS, SAMPLE_RATE = 640, 360, 24, 48_000
PICTURE = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={FPS}:duration=2,format=yuv420p"
TONE = f"sine=frequency=220:sample_rate={SAMPLE_RATE}:duration=2,volume=0.2"


def make_sample(path: Path) -> None:
    """Write an MP4 of a moving test picture and a soft tone."""
    # Only now: the shell imports this module for each of its commands.
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        with av.open(PICTURE, format="lavfi") as pictures:
            for picture in pictures.decode(video=0):
                container.mux(video.encode(picture))
        container.mux(video.encode())
        with av.open(TONE, format="lavfi") as tone:
            for sound in tone.decode(audio=0):
                container.mux(audio.encode(sound))
        container.mux(audio.encode())
