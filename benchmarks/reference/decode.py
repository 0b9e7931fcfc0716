"""The least that shows a video to be whole: decode every stream of it, and keep nothing."""

import sys
from concurrent.futures import ThreadPoolExecutor

import av


def decode(path: str) -> None:
    with av.open(path) as container:
        for packet in container.demux():
            packet.decode()


if __name__ == "__main__":
    with ThreadPoolExecutor(int(sys.argv[1])) as pool:
        list(pool.map(decode, sys.argv[2:]))
