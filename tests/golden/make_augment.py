#!/usr/bin/python3
"""Golden pixels of the augmentation operations, from Pillow and from a transcription of the reference's formulas in numpy.

    python3 make_augment.py                writes augment.h5 beside this file and prints where Pillow and the reference part
    python3 make_augment.py --compare      compares what would be written with the file that is there
    python3 make_augment.py --orders       how many of the 2^24 colours have a grey that depends on the order of its sum

`reference` is the meaning of the EfficientNet reference's autoaugment.py, every float32 operation on its own, as TensorFlow
executes it; nothing here was taken from the C code.  `pillow` is the same operation made by Pillow itself, where there is one:

    AutoContrast Equalize Invert Posterize Solarize Brightness      ImageOps, ImageEnhance
    SolarizeAdd                                                     Image.point with the table
    Rotate Shear Translate                                          Image.transform(AFFINE, NEAREST, fillcolor); the shears get the half
                                                                    pixel that Pillow's coordinates start further left and above
    Color Contrast Sharpness                                        Image.blend, given the degenerate picture of the reference: of it
                                                                    Pillow has another idea (grey rounded otherwise; mean grey; rounding)
    Cutout                                                          ImageDraw.rectangle

The pictures follow a formula that the test repeats.  Of the first the file keeps all pixels, of the others CRC-32s: an array
`reference` (cases, h, w, 3), and `pillow`, the exclusive or of Pillow's pixels with those (0 where there is nothing to compare)."""
import argparse
import os
import sys
import zlib

import h5py
import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

F = np.float32
SIZES = [(33, 27), (224, 224), (290, 259), (5, 3), (2, 70), (1, 1)]        # width, height
NAMES = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness",
         "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd"]
FACTORS = [0, 0.1, 0.28, 0.82, 1, 1.36, 1.72, 5.14]
CASES = ([(n, 0) for n in ("AutoContrast", "Equalize", "Invert")]
         + [("Rotate", a) for a in (0, 6, -15, 21, 24, -24, 27, 30, -84)]
         + [("Posterize", a) for a in (0, 1, 2, 4, 7, 8)]
         + [("Solarize", a) for a in (0, 51, 76, 128, 204, 255, 256)]
         + [(n, a) for n in ("Color", "Contrast", "Brightness", "Sharpness") for a in FACTORS]
         + [(n, a) for n in ("ShearX", "ShearY") for a in (0, 0.09, -0.12, 0.21, -0.27, 0.3, -0.84)]
         + [(n, a) for n in ("TranslateX", "TranslateY") for a in (0, 10, -10, 66.7, -7.5, 2.5, -225)]
         + [("Cutout", a) for a in (0, 1, 8, 40)]
         + [("SolarizeAdd", a) for a in (0, 33, 77, 110, 308)])


def picture(index):
    """(h, w, 3): red a ramp with noise, green of few levels, blue noise."""
    w, h = SIZES[index]
    y, x, c = np.meshgrid(np.arange(h, dtype=np.uint32), np.arange(w, dtype=np.uint32), np.arange(3, dtype=np.uint32), indexing="ij")
    n = x * np.uint32(73856093) ^ y * np.uint32(19349663) ^ (c + np.uint32(1)) * np.uint32(83492791)
    n = (n ^ n >> np.uint32(13)) * np.uint32(0x5bd1e995)
    n ^= n >> np.uint32(15)
    red = (n & 63) + x * 160 // w + np.where((x // 8 + y // 8) % 2 == 0, 30, 0)
    green = 40 + y * 100 // h + (n & 31)
    return np.where(c == 0, red, np.where(c == 1, green, n & 255)).astype(np.uint8)


# ---- the reference ----------------------------------------------------------------------------------------------------

def blend(a, b, f):
    if f == 0.0:
        return a
    if f == 1.0:
        return b
    a, b = a.astype(F), b.astype(F)
    t = a + F(f) * (b - a)
    return (t if f < 1 else np.clip(t, F(0), F(255))).astype(np.uint8)


def grey(img):
    unit = img.astype(F) * F(1 / 255)
    total = (unit[..., 0] * F(0.2989) + unit[..., 1] * F(0.5870)) + unit[..., 2] * F(0.1140)
    return np.repeat((total * F(255.5)).astype(np.uint8)[..., None], 3, axis=2)


def constant_of_contrast(img):
    counts = np.histogram(grey(img)[..., 0], bins=256, range=(0, 256))[0]
    return np.full_like(img, np.uint8(np.clip(counts.astype(F).sum() / F(256), 0, 255)))


def smoothed(img):
    h, w, _ = img.shape
    if h < 3 or w < 3:
        return img
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], F) / F(13)
    total = np.zeros((h - 2, w - 2, 3), F)
    for i in range(3):
        for j in range(3):
            total = total + img[i:i + h - 2, j:j + w - 2].astype(F) * kernel[i, j]
    out = img.copy()
    out[1:-1, 1:-1] = np.clip(total, F(0), F(255)).astype(np.uint8)
    return out


def autocontrast(img):
    out = img.copy()
    for c in range(3):
        lo, hi = F(img[..., c].min()), F(img[..., c].max())
        if hi > lo:
            scale = F(255) / (hi - lo)
            out[..., c] = np.clip(img[..., c].astype(F) * scale + -lo * scale, F(0), F(255)).astype(np.uint8)
    return out


def equalize(img):
    out = img.copy()
    for c in range(3):
        histogram = np.bincount(img[..., c].ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram != 0][-1]) // 255
        if step:
            lut = (np.cumsum(histogram) + step // 2) // step
            out[..., c] = np.clip(np.concatenate([[0], lut[:-1]]), 0, 255)[img[..., c]]
    return out


def matrix(name, argument, w, h):
    """a0 a1 a2 b0 b1 b2 of contrib.image, float32"""
    a = F(argument)
    if name == "Rotate":
        angle = a * F(np.pi / 180)
        c, s = F(np.cos(np.float64(angle))), F(np.sin(np.float64(angle)))
        right, bottom = F(w - 1), F(h - 1)
        return [c, -s, (right - (c * right - s * bottom)) / F(2), s, c, (bottom - (s * right + c * bottom)) / F(2)]
    return {"ShearX": [1, a, 0, 0, 1, 0], "ShearY": [1, 0, 0, a, 1, 0], "TranslateX": [1, 0, a, 0, 1, 0],
            "TranslateY": [1, 0, 0, 0, 1, a]}[name]


def warp(img, m):
    h, w, _ = img.shape
    m = [F(v) for v in m]
    y, x = np.meshgrid(np.arange(h).astype(F), np.arange(w).astype(F), indexing="ij")
    u, v = ((m[k] * x + m[k + 1] * y + m[k + 2]).astype(np.float64) for k in (0, 3))
    u, v = (np.trunc(t + np.copysign(0.5, t)).astype(np.int64) for t in (u, v))          # std::round: half away from zero
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    return np.where(inside[..., None], img[np.where(inside, v, 0), np.where(inside, u, 0)], np.uint8(128))


def square(argument, w, h):
    half, cx, cy = int(argument), w // 3, h - 1                # the centre that the test takes, too
    return max(cx - half, 0), max(cy - half, 0), min(cx + half, w), min(cy + half, h)


def reference(name, argument, img):
    h, w, _ = img.shape
    if name == "AutoContrast":
        return autocontrast(img)
    if name == "Equalize":
        return equalize(img)
    if name == "Invert":
        return 255 - img
    if name == "Posterize":
        shift = min(8 - argument, 7)                           # cwise_ops.h clamps it to the type's bits - 1
        return img >> shift << shift
    if name == "Solarize":
        return np.where(img.astype(int) < argument, img, 255 - img)
    if name == "SolarizeAdd":
        return np.where(img < 128, np.clip(img.astype(int) + argument, 0, 255), img).astype(np.uint8)
    if name == "Color":
        return blend(grey(img), img, argument)
    if name == "Contrast":
        return blend(constant_of_contrast(img), img, argument)
    if name == "Brightness":
        return blend(np.zeros_like(img), img, argument)
    if name == "Sharpness":
        return blend(smoothed(img), img, argument)
    if name == "Cutout":
        x0, y0, x1, y1 = square(argument, w, h)
        out = img.copy()
        out[y0:y1, x0:x1] = 128
        return out
    return warp(img, matrix(name, argument, w, h))


# ---- Pillow -----------------------------------------------------------------------------------------------------------

def pillow(name, argument, img):
    """None: Pillow has nothing of the kind."""
    im = Image.fromarray(img)
    h, w, _ = img.shape
    if name == "AutoContrast":
        out = ImageOps.autocontrast(im)
    elif name == "Equalize":
        out = ImageOps.equalize(im)
    elif name == "Invert":
        out = ImageOps.invert(im)
    elif name == "Posterize":
        if argument == 0:
            return None                                        # black there, two levels in the reference
        out = ImageOps.posterize(im, argument)
    elif name == "Solarize":
        out = ImageOps.solarize(im, argument)
    elif name == "SolarizeAdd":
        out = im.point([min(i + argument, 255) if i < 128 else i for i in range(256)] * 3)
    elif name == "Brightness":
        out = ImageEnhance.Brightness(im).enhance(argument)
    elif name in ("Color", "Contrast", "Sharpness"):
        degenerate = {"Color": grey, "Contrast": constant_of_contrast, "Sharpness": smoothed}[name](img)
        out = Image.blend(Image.fromarray(degenerate), im, argument)
    elif name == "Cutout":
        x0, y0, x1, y1 = square(argument, w, h)
        out = im.copy()
        if x0 < x1 and y0 < y1:
            ImageDraw.Draw(out).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(128, 128, 128))
    else:
        m = [float(v) for v in matrix(name, argument, w, h)]
        # Pillow's pixel x spans x...x+1: source + 1/2 = a0 (x + 1/2) + a1 (y + 1/2) + what is left of a2
        m[2] += 0.5 - (m[0] + m[1]) / 2
        m[5] += 0.5 - (m[3] + m[4]) / 2
        out = im.transform((w, h), Image.AFFINE, m, resample=Image.NEAREST, fillcolor=(128, 128, 128))
    return np.asarray(out)


def plain_pillow(name, argument, img):
    im = Image.fromarray(img)
    return np.asarray(getattr(ImageEnhance, name)(im).enhance(argument))


# ---- the file -----------------------------------------------------------------------------------------------------------

def build():
    first = picture(0)
    got = [reference(n, a, first) for n, a in CASES]
    theirs = [pillow(n, a, first) for n, a in CASES]
    return {
        "size": np.array(SIZES, np.int32),
        "op": np.array([NAMES.index(n) for n, _ in CASES], np.int32),
        "argument": np.array([a for _, a in CASES], np.float64),
        "picture_crc": np.array([zlib.crc32(picture(i).tobytes()) for i in range(len(SIZES))], np.uint32),
        "crc": np.array([[zlib.crc32(reference(n, a, picture(i)).tobytes()) for i in range(len(SIZES))] for n, a in CASES], np.uint32),
        "reference": np.stack(got),
        "has_pillow": np.array([t is not None for t in theirs], np.int32),
        "pillow": np.stack([g ^ t if t is not None else np.zeros_like(g) for g, t in zip(got, theirs)]),
    }


def report():
    print(f"Pillow {PIL.__version__}, numpy {np.__version__}")
    print("where Pillow's pixels are others than the reference's: pixels, largest difference")
    for n, a in CASES:
        for i in (0, 1):
            img = picture(i)
            ours, theirs = reference(n, a, img), pillow(n, a, img)
            if theirs is None:
                print(f"    {n} {a}: no Pillow")
                break
            d = np.abs(ours.astype(int) - theirs)
            if d.any():
                print(f"    {n} {a} at {SIZES[i]}: {(d.max(axis=2) > 0).sum()} of {d.shape[0] * d.shape[1]}, {d.max()}")
    print("and with Pillow's own degenerate picture (ImageEnhance): pixels, largest and mean difference")
    for n in ("Color", "Contrast", "Sharpness"):
        for a in (0.1, 1.72):
            d = np.abs(reference(n, a, picture(1)).astype(int) - plain_pillow(n, a, picture(1)))
            print(f"    {n} {a} at {SIZES[1]}: {(d.max(axis=2) > 0).mean():.1%}, {d.max()}, {d.mean():.2f}")


def orders():
    r, g, b = (np.arange(256, dtype=F) * F(1 / 255) * F(k) for k in (0.2989, 0.5870, 0.1140))
    differ = 0
    for i in range(256):
        one = ((r[i] + g[:, None]) + b[None, :]) * F(255.5)
        two = (r[i] + (g[:, None] + b[None, :])) * F(255.5)
        differ += (one.astype(int) != two.astype(int)).sum()
    print(f"{differ} of {256**3} colours")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--orders", action="store_true")
    options = parser.parse_args()
    if options.orders:
        return orders()
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "augment.h5")
    arrays = build()
    if options.compare:
        with h5py.File(path, "r") as f:
            same = {k: np.array_equal(f[k][()], v) for k, v in arrays.items()}
        print(f"Pillow {PIL.__version__}:", same)
        return sys.exit(0 if all(same.values()) else 1)
    report()
    with h5py.File(path, "w", libver=("earliest", "v108")) as f:
        for k, v in arrays.items():
            big = v.ndim == 4
            f.create_dataset(k, data=v, **({"compression": "gzip", "compression_opts": 9, "chunks": v.shape} if big else {}))
        f.attrs["made_by"] = f"make_augment.py, Pillow {PIL.__version__}, numpy {np.__version__}"
    print(f"{path}: {os.path.getsize(path)} bytes, {len(CASES)} cases")


if __name__ == "__main__":
    main()
