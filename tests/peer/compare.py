#!/usr/bin/python3
"""effnet and PyTorch side by side on this machine (start it with tests/peer/compare, which sets things up).

Each round runs effnet, PyTorch as it comes, PyTorch tuned, one after another in fresh processes, so that what the machine does
besides falls on all three alike; a ratio is formed within its round, and the table shows median, least and most."""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    p = argparse.ArgumentParser(prog="tests/peer/compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="b0")
    p.add_argument("--image-size", type=int, default=224)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--steps", type=int, default=10, help="measured steps of each run")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--effnet", default=os.path.join(HERE, "..", "..", "build", "effnet"), help="the program")
    p.add_argument("--json", action="store_true", help="all measurements as one JSON object")
    return p.parse_args()


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("compare: %s\nended with %d:\n%s%s" % (" ".join(command), done.returncode, done.stdout, done.stderr))
    return json.loads(done.stdout)


def main():
    a = arguments()
    if a.rounds < 1:
        sys.exit("compare: --rounds %d: at least one is needed" % a.rounds)
    size = ["--image-size", str(a.image_size), "--threads", str(a.threads), "--steps", str(a.steps), "--json", "--model", a.model]
    torch = [sys.executable, os.path.join(HERE, "bench_pytorch.py"), "--batch", str(a.batch)] + size
    contestants = [
        ("effnet", [a.effnet, "bench", "train", "--micro-batch", str(a.batch)] + size),
        ("PyTorch as it comes", torch),
        ("PyTorch tuned", torch + ["--tuned"]),
    ]
    with open("/proc/loadavg", encoding="ascii") as f:
        load = float(f.read().split()[0])
    if load > 0.5 and not a.json:
        print("note: the load is %.1f before the first run; an idle machine gives steadier numbers" % load, file=sys.stderr)

    runs = {name: [] for name, _ in contestants}
    for n in range(a.rounds):
        for name, command in contestants:
            runs[name].append(run(command))
        if not a.json:
            print("round %d: " % (n + 1) + ", ".join("%s %.1f" % (k, v[-1]["images_per_s"]) for k, v in runs.items()) + " images/s",
                  file=sys.stderr, flush=True)
    if a.json:
        print(json.dumps(runs))
        return

    ours = runs["effnet"]
    peer = runs["PyTorch as it comes"][0]
    print("\n%s at %d px, %d images a step, %d threads, fp32; %d rounds of %d steps; %s passes; %s" % (
        ours[0]["model"], a.image_size, a.batch, a.threads, a.rounds, a.steps, ours[0].get("isa", "?"), peer["framework"]))
    print("%-22s %28s %34s %10s" % ("", "images/s: median least most", "effnet / it: median least most", "peak GiB"))
    for name, _ in contestants:
        speed = [r["images_per_s"] for r in runs[name]]
        ratio = [o["images_per_s"] / r["images_per_s"] for o, r in zip(ours, runs[name])]
        peak = max(r["peak_memory_bytes"] for r in runs[name]) / 2**30
        print("%-22s %14.1f %6.1f %6.1f %19.2f %6.2f %6.2f %10.2f" % (
            name, statistics.median(speed), min(speed), max(speed), statistics.median(ratio), min(ratio), max(ratio), peak))


if __name__ == "__main__":
    main()
