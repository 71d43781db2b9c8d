"""Makes resize_pillow.bin: what Pillow's antialiased resampling makes of one picture, for tests/test_data_resize.c.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install pillow numpy && /tmp/venv/bin/python make_resize.py

The picture is 120 x 90 with hard edges, where bicubic overshoots, and noise; the test draws the same one.  For each kernel and case
the file holds the bytes of the target, one after the other.  Made with Pillow 13.0.0."""
import os

import numpy
from PIL import Image

W, H = 120, 90
CASES = [  # x, y, w, h of the part, side of the target
    (0, 0, 120, 90, 24), (7, 5, 100, 81, 40), (11, 3, 40, 31, 56), (90, 60, 30, 30, 30), (3, 20, 110, 9, 33)]
SHRINK = (32, 24)  # w, h of the whole picture, shrunk


def picture():
    state, values = 1, []
    for y in range(H):
        for x in range(W):
            for d in range(3):
                state = (state * 1664525 + 1013904223) % 2**32
                edge = 200 if (x // 10 + y // 8 + d) % 2 else 0
                values.append(edge + (state >> 24) * 56 // 256)
    return Image.fromarray(numpy.array(values, numpy.uint8).reshape(H, W, 3), "RGB")


def main():
    image, out = picture(), b""
    for kernel in (Image.BICUBIC, Image.BILINEAR):
        for x, y, w, h, side in CASES:
            out += image.crop((x, y, x + w, y + h)).resize((side, side), kernel).tobytes()
    out += image.resize(SHRINK, Image.BICUBIC).tobytes()
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "resize_pillow.bin"), "wb") as f:
        f.write(out)


main()
