#!/usr/bin/env python3
"""effnet beside PyTorch on one GPU: the training step on resident data, bf16, the same batch.

    tests/peer/bench_gpu.py                                       B0, B4 and B7, about a quarter of an hour, most of it compiling
    tests/peer/bench_gpu.py --models b0:224:512 --peers eager,default --json > b0.json
    tests/peer/bench_gpu.py --dry-run                             tiny and on the processor: does the script itself work?

Each contestant runs in a process of its own, one after another, so that memory and caches are its own: effnet bench train, PyTorch eager,
PyTorch with torch.compile in several modes (bench_pytorch_gpu.py says what else is in PyTorch's favour).  The table gives
the median step, the memory taken from the device, and effnet's speed over theirs; a contestant that fails or runs out of
time is a row that says so.  --rounds repeats all of it; the ratio is formed within a round, and the median is shown.

Exit code: 0; 1 a contestant failed; 77 nothing can be measured here, and why."""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CANNOT = 77
PEERS = ("eager", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")
TARGET_DEVICE, TARGET_RATIO = "H200", 1.5                        # at least that much faster than the quickest torch.compile
TARGETS = {("b0", 224): 15000, ("b4", 380): 2000, ("b7", 600): 320}                       # images/s on one of TARGET_DEVICE


def models(text):
    rows = []
    for item in text.split(","):
        try:
            name, size, batch = item.split(":")
            rows.append((name, int(size), int(batch)))
        except ValueError:
            raise argparse.ArgumentTypeError("'%s' is not MODEL:PIXELS:BATCH" % item) from None
    return rows


def peers(text):
    chosen = [p for p in text.split(",") if p]
    for p in chosen:
        if p not in PEERS:
            raise argparse.ArgumentTypeError("'%s' is none of %s" % (p, ", ".join(PEERS)))
    return chosen


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=models, default=models("b0:224:256,b4:380:64,b7:600:24"), help="MODEL:PIXELS:BATCH,...")
    p.add_argument("--peers", type=peers, default=peers("eager,default,max-autotune-no-cudagraphs"), help="some of " + ",".join(PEERS))
    p.add_argument("--steps", type=int, default=30, help="measured steps")
    p.add_argument("--warm", type=int, default=10, help="PyTorch's steps before them (effnet warms up by itself)")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--limit", type=int, default=600, help="seconds for one contestant, compiling included")
    p.add_argument("--library", choices=("torchvision", "timm"), default="torchvision")
    p.add_argument("--effnet", default=os.environ.get("EFFNET", os.path.join(ROOT, "build", "effnet")), help="the program")
    p.add_argument("--python", default=sys.executable, help="the one that has PyTorch")
    p.add_argument("--json", action="store_true", help="all measurements as one JSON object")
    p.add_argument("--dry-run", action="store_true", help="tiny, on the processor; the figures mean nothing")
    a = p.parse_args()
    if a.rounds < 1 or a.steps < 1:
        p.error("--rounds and --steps start at 1")
    if a.dry_run:
        a.models, a.steps, a.warm, a.limit = [("b0", 64, 2)], 1, 1, 120
    return a


def run(command, limit):
    """What the command printed as JSON, or {"failed": reason, "code": exit code}."""
    began = time.monotonic()
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    except OSError as e:
        return {"failed": "%s: %s" % (command[0], e.strerror), "code": 127}
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)                    # compilers that it started, too
        child.communicate()
        return {"failed": "not ready after %d s (--limit)" % limit, "code": 124}
    if child.returncode:
        lines = [line for line in err.strip().splitlines() if line.strip()]
        return {"failed": (lines[-1] if lines else "no word")[:300], "code": child.returncode, "stderr": err[-4000:]}
    try:
        return dict(json.loads(out.strip().splitlines()[-1]), command=" ".join(command), seconds=time.monotonic() - began)
    except (ValueError, IndexError):
        return {"failed": "printed no JSON: " + out[-200:], "code": 1}


def contestants(a, name, size, batch):
    device = "cpu" if a.dry_run else "cuda"
    common = ["--model", name, "--image-size", str(size), "--steps", str(a.steps), "--device", device, "--json"]
    yield "effnet", [a.effnet, "bench", "train", "--micro-batch", str(batch), "--precision", "fp32" if a.dry_run else "bf16"] + common
    for mode in a.peers:
        yield mode, [a.python, os.path.join(HERE, "bench_pytorch_gpu.py"), "--batch", str(batch), "--warm", str(a.warm),
                     "--mode", mode, "--library", a.library] + common


def title(who):
    return {"effnet": "effnet", "eager": "PyTorch eager"}.get(who, "torch.compile " + who)


def gpu_name(a):
    """The device's name; ends with CANNOT when there is no GPU or no PyTorch."""
    probe = "import torch, sys; torch.cuda.is_available() or sys.exit('torch %s sees no GPU' % torch.__version__); print(torch.cuda.get_device_name())"
    if a.dry_run:
        probe = "import torch; print('the processor')"
    done = subprocess.run([a.python, "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        print("bench_gpu: nothing to measure here: %s: %s" % (a.python, reason), file=sys.stderr)
        sys.exit(CANNOT)
    return done.stdout.strip().splitlines()[-1]


def median_of(runs, key):
    values = [r[key] for r in runs if key in r]
    return statistics.median(values) if values else None


def table(a, name, size, batch, rounds, device):
    ours = [r["effnet"] for r in rounds]
    speed = median_of(ours, "images_per_s")
    print("\n%s at %d px, %d images a step, %s; %d x %d steps" % (name, size, batch, "fp32" if a.dry_run else "bf16", a.rounds, a.steps))
    print("  %-42s %10s %10s %9s %12s" % ("", "images/s", "step ms", "GiB", "effnet / it"))
    compiled = []
    for who in rounds[0]:
        runs = [r[who] for r in rounds]
        good = [r for r in runs if "failed" not in r]
        if not good:
            print("  %-42s %s" % (title(who), runs[0]["failed"]))
            continue
        ratios = [r["effnet"]["images_per_s"] / r[who]["images_per_s"] for r in rounds
                  if "failed" not in r["effnet"] and "failed" not in r[who]]
        ratio = statistics.median(ratios) if ratios else None
        memory = max(r.get("device_memory_bytes") or r.get("peak_memory_bytes") or 0 for r in good) / 2**30
        print("  %-42s %10.1f %10.2f %9.2f %12s" % (title(who), median_of(good, "images_per_s"), 1e3 * median_of(good, "step_s"), memory,
                                                  "%.2f" % ratio if ratio and who != "effnet" else ""))
        if who not in ("effnet", "eager") and ratio:
            compiled.append(ratio)
    target = TARGETS.get((name, size))
    if target and speed and TARGET_DEVICE in device:
        met = lambda yes: "met" if yes else "missed"
        print("  target: %d images/s %s (%.2f of it)" % (target, met(speed >= target), speed / target), end="")
        if compiled:
            print("; %.1f x the quickest torch.compile %s (%.2f)" % (TARGET_RATIO, met(min(compiled) >= TARGET_RATIO), min(compiled)), end="")
        print()


def main():
    a = arguments()
    device = gpu_name(a)
    results, failed = [], 0
    if not a.json:
        print("on %s%s" % (device, ": a dry run, whose figures mean nothing" if a.dry_run else ""))
    for name, size, batch in a.models:
        rounds = []
        for n in range(a.rounds):
            rounds.append({})
            for who, command in contestants(a, name, size, batch):
                outcome = run(command, a.limit)
                if a.dry_run and outcome.get("code") == CANNOT:  # a PyTorch of before torch.compile will do for a dry run
                    print("bench_gpu: left out: %s" % outcome["failed"], file=sys.stderr)
                    continue
                failed += "failed" in outcome
                rounds[-1][who] = outcome
                print("%s round %d, %s: %s" % (name, n + 1, title(who), outcome.get("failed") or "%.1f images/s" % outcome["images_per_s"]),
                      file=sys.stderr, flush=True)
        results.append({"model": name, "resolution": size, "batch": batch, "rounds": rounds})
        if not a.json:
            table(a, name, size, batch, rounds, device)
            sys.stdout.flush()
    if a.json:
        print(json.dumps({"device": device, "dry_run": a.dry_run, "models": results}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
