#!/usr/bin/python3
"""effnet's input side beside torchvision and Pillow: images per second of one core, over the same files in the same minutes
(start it with tests/peer/compare_data, which sets things up).

FOLDER is an image folder, FOLDER/<class>/...; links to some of its images, evenly spread, make the folder that both read.
Each round runs torchvision, then effnet, in fresh processes, on every line of the table; a ratio is formed within its round, and
median, least and most are shown. "Of a core" is by CPU time: of the whole process for torchvision, of the worker for effnet.

    torchvision   ImageFolder with Pillow, one image after another, on one thread: RandomResizedCrop, RandomHorizontalFlip, ToTensor,
                  Normalize; with AutoAugment (its ImageNet policy) before ToTensor. No batches, no workers: in its favour.
    effnet        `effnet bench data --workers 1`: the loader, reading and batches included.

The two draw crops differently, each as its reference does: torchvision's area is uniform, of effnet's the height is, so that its
crops are smaller; both are random resized crops of 8 % to 100 %, aspect 3/4 to 4/3.

Exit code: 0; 1 something failed, or --check and a target missed; 77 there is no torchvision."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

CANNOT = 77
HERE = os.path.dirname(os.path.abspath(__file__))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LINES = (                                                        # title, pixels, torchvision's policy, effnet's options, least ratio
    ("224 px", 224, "none", ["--augment", "basic"], 2.5),
    ("224 px, resized as torchvision does", 224, "none", ["--augment", "basic", "--resize", "bilinear-aa"], None),
    ("224 px, AutoAugment", 224, "autoaugment", ["--augment", "autoaugment"], None),
    ("600 px", 600, "none", ["--augment", "basic"], 1.5),
)
PLAIN, AUGMENTED, MOST_ON_TOP = 0, 2, 40                         # lines whose difference is what AutoAugment costs; per cent


def arguments():
    p = argparse.ArgumentParser(prog="tests/peer/compare_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", help="image folder")
    p.add_argument("--images", type=int, default=400, help="how many of them (0: all)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--effnet", default=os.path.join(HERE, "..", "..", "build", "effnet"), help="the program")
    p.add_argument("--decode", choices=("exact", "scaled"), default="exact", help="effnet's --decode")
    p.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    p.add_argument("--json", action="store_true", help="all measurements as one JSON object")
    p.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--size", type=int, help=argparse.SUPPRESS)
    p.add_argument("--policy", default="none", help=argparse.SUPPRESS)
    return p.parse_args()


def torchvision_once(a):
    """The peer's process: one pass over the folder, after one that fills the page cache and a few images that warm up."""
    import PIL
    import torch
    import torchvision
    from torchvision import transforms

    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = [transforms.RandomResizedCrop(a.size), transforms.RandomHorizontalFlip()]
    if a.policy == "autoaugment":
        steps.append(transforms.AutoAugment())
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = torchvision.datasets.ImageFolder(a.folder, transforms.Compose(steps))
    for path, _ in images.samples:
        with open(path, "rb") as f:
            f.read()
    for i in range(min(len(images), 16)):
        images[i]
    cpu, clock = time.process_time(), time.perf_counter()
    for i in range(len(images)):
        images[i]
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    print(json.dumps({"framework": "torchvision %s, torch %s, Pillow %s" % (torchvision.__version__, torch.__version__, PIL.__version__),
                      "images": len(images), "images_per_core_s": len(images) / cpu, "images_per_s": len(images) / clock}))


def link_some(source, target, wanted):
    """target/<class>/... becomes links to `wanted` images of source, evenly spread; how many there are."""
    found = []
    for folder, folders, files in os.walk(source, followlinks=True):
        folders.sort()
        if folder != source:
            found += [os.path.join(folder, f) for f in sorted(files) if f.lower().endswith((".jpeg", ".jpg", ".png"))]
    if not found:
        sys.exit("compare_data: %s has no class folders with .jpg, .jpeg or .png files" % source)
    wanted = min(wanted or len(found), len(found))
    for i in range(wanted):
        path = found[i * len(found) // wanted]
        parts = os.path.relpath(path, source).split(os.sep)
        os.makedirs(os.path.join(target, parts[0]), exist_ok=True)
        os.symlink(os.path.abspath(path), os.path.join(target, parts[0], "%06d-%s" % (i, parts[-1])))
    return wanted


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("compare_data: %s\nended with %d:\n%s%s" % (" ".join(command), done.returncode, done.stdout, done.stderr))
    return json.loads(done.stdout)


def measure(a, folder, images):
    rounds = []
    for n in range(a.rounds):
        rounds.append([])
        for title, size, policy, options, _ in LINES:
            peer = run([sys.executable, os.path.abspath(__file__), folder, "--peer", "--size", str(size), "--policy", policy])
            ours = run([a.effnet, "bench", "data", "--data", folder, "--image-size", str(size), "--micro-batch", str(images), "--steps", "1",
                        "--workers", "1", "--device", "cpu", "--decode", a.decode, "--json"] + options)
            if ours["bad"] or ours["images"] != peer["images"]:
                sys.exit("compare_data: effnet measured %d images, torchvision %d" % (ours["images"], peer["images"]))
            rounds[-1].append({"line": title, "peer": peer, "effnet": ours})
            print("round %d, %s: torchvision %.1f, effnet %.1f images/s of a core" % (
                n + 1, title, peer["images_per_core_s"], ours["ways"]["loader"]["images_per_core_s"]), file=sys.stderr, flush=True)
    return rounds


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summary(rounds):
    """Per line: rates and ratios over the rounds; what AutoAugment costs either side."""
    lines = []
    for k, (title, _, _, _, target) in enumerate(LINES):
        runs = [r[k] for r in rounds]
        way = "augment" if k == AUGMENTED else "crop"
        thread = lambda o: 1e6 / (o["ways"]["read"]["cpu_us"] + o["ways"][way]["cpu_us"])
        lines.append({
            "line": title, "target": target,
            "peer": spread([r["peer"]["images_per_core_s"] for r in runs]),
            "effnet": spread([r["effnet"]["ways"]["loader"]["images_per_core_s"] for r in runs]),
            "ratio": spread([r["effnet"]["ways"]["loader"]["images_per_core_s"] / r["peer"]["images_per_core_s"] for r in runs]),
            "ratio_by_clock": spread([r["effnet"]["ways"]["loader"]["images_per_s"] / r["peer"]["images_per_s"] for r in runs]),
            "ratio_without_loader": spread([thread(r["effnet"]) / r["peer"]["images_per_core_s"] for r in runs]),
        })
    cost = lambda plain, augmented: 100 * (plain / augmented - 1)
    loader = lambda r, k: r[k]["effnet"]["ways"]["loader"]["images_per_core_s"]
    ways = lambda r: r[AUGMENTED]["effnet"]["ways"]
    return {"lines": lines, "autoaugment_percent": {
        "effnet": spread([cost(ways(r)["crop"]["images_per_core_s"], ways(r)["augment"]["images_per_core_s"]) for r in rounds]),
        "effnet_loader": spread([cost(loader(r, PLAIN), loader(r, AUGMENTED)) for r in rounds]),
        "peer": spread([cost(r[PLAIN]["peer"]["images_per_core_s"], r[AUGMENTED]["peer"]["images_per_core_s"]) for r in rounds])}}


def three(s, form="%.2f"):
    return " ".join(form % s[k] for k in ("median", "least", "most"))


def missed(found):
    return [x["line"] for x in found["lines"] if x["target"] and x["ratio"]["median"] < x["target"]] + (
        ["AutoAugment"] if found["autoaugment_percent"]["effnet"]["median"] > MOST_ON_TOP else [])


def table(a, rounds, found, images):
    first = rounds[0][0]
    print("\n%s: %d images, %.1f kB and %.0f x %.0f in the mean; %d rounds; effnet --decode %s; %s" % (
        a.folder, images, first["effnet"]["bytes_mean"] / 1e3, first["effnet"]["width_mean"], first["effnet"]["height_mean"], a.rounds, a.decode,
        first["peer"]["framework"]))
    print("images/s of a core (CPU time), each as median least most\n%-38s %20s %20s %20s %17s %17s" % (
        "", "torchvision", "effnet", "effnet / it", "by the clock", "without loader"))
    for x in found["lines"]:
        print("%-38s %20s %20s %20s %17s %17s" % (x["line"], three(x["peer"], "%.1f"), three(x["effnet"], "%.1f"), three(x["ratio"]),
                                                 three(x["ratio_by_clock"]), three(x["ratio_without_loader"])), end="")
        print("  target %.1f: %s" % (x["target"], "missed" if x["line"] in missed(found) else "met") if x["target"] else "")
    c = found["autoaugment_percent"]
    print("AutoAugment costs on top, in %%: effnet %s (through the loader %s), torchvision %s  target at most %d: %s" % (
        three(c["effnet"], "%.1f"), three(c["effnet_loader"], "%.1f"), three(c["peer"], "%.1f"), MOST_ON_TOP,
        "missed" if "AutoAugment" in missed(found) else "met"))


def main():
    a = arguments()
    if a.peer:
        torchvision_once(a)
        return
    if subprocess.run([sys.executable, "-c", "import torchvision, PIL"], stderr=subprocess.DEVNULL, check=False).returncode:
        print("compare_data: %s has no torchvision with Pillow" % sys.executable, file=sys.stderr)
        sys.exit(CANNOT)
    if a.rounds < 1 or a.images < 0:
        sys.exit("compare_data: --rounds begins at 1, --images at 0")
    with tempfile.TemporaryDirectory() as folder:
        images = link_some(a.folder, folder, a.images)
        rounds = measure(a, folder, images)
    found = summary(rounds)
    if a.json:
        print(json.dumps(dict(found, folder=a.folder, images=images, rounds=rounds)))
    else:
        table(a, rounds, found, images)
    sys.exit(1 if a.check and missed(found) else 0)


if __name__ == "__main__":
    main()
