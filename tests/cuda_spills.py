#!/usr/bin/env python3
"""cuda_spills.py [--accepted FILE] LOG... - no CUDA kernel uses local memory, unless FILE names it with a reason.

LOG is what ptxas -v said while an object was compiled (tests/cuda_ptxas keeps it).  Local memory, be it spilled registers or an
array with a dynamic index, is slow and shows in no profile by name.  Prints the kernels with most registers and shared
memory.  --self-test NVCC compiles a kernel that spills, one with a stack frame and a clean one, and wants the first two found."""
import argparse
import os
import re
import subprocess
import sys
import tempfile

ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '(\S+)' for '(sm_\w+)'")
FRAME = re.compile(r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
PROPERTIES = re.compile(r"ptxas info\s*: Function properties for (\S+)")
HEAVIEST = 15

PLANTED = r"""
extern "C" __global__ void clean(float *x) { x[threadIdx.x] *= 2.f; }
extern "C" __global__ void with_stack_frame(float *x, int i)
{
    float a[256];
    for (int k = 0; k < 256; k++) a[(k * i) & 255] = x[k];
    x[threadIdx.x] = a[threadIdx.x & 255];
}
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float *x)
{
    float a[64];
#pragma unroll
    for (int k = 0; k < 64; k++) a[k] = x[threadIdx.x + 1024 * k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 64; k++) x[threadIdx.x + 1024 * k] = a[63 - k] + a[(k * 7) % 64];
}
"""


class Kernel:
    def __init__(self, mangled, arch):
        self.mangled, self.arch, self.name = mangled, arch, mangled
        self.frame = self.stores = self.loads = self.registers = self.shared = None

    def local_bytes(self):
        return max(self.frame, self.stores, self.loads)


def read(text, where):
    kernels, now, function = [], None, None
    for line in text.splitlines():
        if m := ENTRY.match(line):
            now = Kernel(m[1], m[2])
            kernels.append(now)
        elif m := PROPERTIES.match(line):
            function = m[1]
        elif (m := FRAME.match(line)) and now:
            if function == now.mangled:
                now.frame, now.stores, now.loads = map(int, m.groups())
            elif int(m[1]):                                     # a function that was not inlined: its frame is the caller's cost
                now.frame = max(now.frame or 0, int(m[1]))
        elif (m := USED.match(line)) and now:
            now.registers = int(m[1])
            shared = SHARED.search(line)
            now.shared = int(shared[1]) if shared else 0
    for k in kernels:
        if k.frame is None or k.registers is None:
            sys.exit("cuda_spills: %s: not understood what ptxas says of %s (another ptxas?)" % (where, k.mangled))
    return kernels


def demangle(kernels):
    try:
        done = subprocess.run(["c++filt"], input="\n".join(k.mangled for k in kernels), stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return
    for k, name in zip(kernels, done.stdout.splitlines()):
        depth = 0
        for end, c in enumerate(name):                          # without parameters and return type
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                name = name[:end]
                break
        k.name = re.sub(r"^void ", "", name).replace("__nv_bfloat16", "bf16")


def accepted(path):
    rows = []
    with open(path, encoding="ascii") as f:
        for number, line in enumerate(f, 1):
            line = line.split("#")[0].split(None, 3)
            if not line:
                continue
            if len(line) < 4 or not line[2].isdigit():
                sys.exit("cuda_spills: %s:%d: want: kernel architecture bytes reason" % (path, number))
            rows.append({"kernel": line[0], "arch": line[1], "bytes": int(line[2]), "line": number, "used": False})
    return rows


def findings(kernels, rows):
    out = []
    for k in kernels:
        if not k.local_bytes():
            continue
        for r in rows:
            if re.sub(r"<.*", "", k.name) == r["kernel"] and r["arch"] in ("*", k.arch) and k.local_bytes() <= r["bytes"]:
                r["used"] = True
                break
        else:
            out.append("%s %s: %d bytes of stack, spills %d bytes out and %d in" % (k.arch, k.name, k.frame, k.stores, k.loads))
    return out + ["line %d accepts what no kernel needs" % r["line"] for r in rows if not r["used"]]


def print_heaviest(kernels):
    arch = "sm_90" if any(k.arch == "sm_90" for k in kernels) else kernels[0].arch
    here = [k for k in kernels if k.arch == arch]
    by = list({re.sub(r"<.*", "", k.name): k for k in sorted(here, key=lambda k: (k.registers, k.shared))}.values())[::-1]
    by = sorted(by, key=lambda k: -k.registers)[:HEAVIEST]       # of each template its heaviest instance
    print("%s, heaviest first (static shared memory alone)\n%5s %8s  kernel" % (arch, "REG", "SHARED"))
    for k in by:
        print("%5d %8d  %s" % (k.registers, k.shared, k.name))
    print("%d kernels, %d registers at most; compiled for %s" % (len(here), by[0].registers, ", ".join(sorted({k.arch for k in kernels}))))


def self_test(nvcc):
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "planted.cu")
        with open(source, "w", encoding="ascii") as f:
            f.write(PLANTED)
        done = subprocess.run([nvcc, "-arch=sm_90", "-cubin", "-Xptxas=-v", "-o", os.path.join(folder, "planted.cubin"), source],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit("cuda_spills: the planted kernels do not compile:\n" + done.stdout)
    found = " ".join(findings(read(done.stdout, "planted"), []))
    if "with_stack_frame" not in found or "spilling" not in found or "clean" in found:
        sys.exit("cuda_spills: self-test: two of three planted kernels were to be found, and were: %s\n%s" % (found or "none", done.stdout))
    stale = findings([], [{"kernel": "gone", "arch": "*", "bytes": 8, "line": 1, "used": False}])
    if not stale:
        sys.exit("cuda_spills: self-test: a line that accepts nothing went unnoticed")
    print("self-test: planted spills are found")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("logs", nargs="*")
    p.add_argument("--accepted")
    p.add_argument("--self-test", metavar="NVCC")
    a = p.parse_args()
    if a.self_test:
        self_test(a.self_test)
    if not a.logs:
        return
    kernels = []
    for path in a.logs:
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                kernels += read(f.read(), path)
        except OSError as e:
            sys.exit("cuda_spills: %s: %s: the object was not compiled through tests/cuda_ptxas" % (path, e.strerror))
    if not kernels:
        sys.exit("cuda_spills: no kernel in %d logs: is -Xptxas=-v missing?" % len(a.logs))
    demangle(kernels)
    found = findings(kernels, accepted(a.accepted) if a.accepted else [])
    print_heaviest(kernels)
    if found:
        print("\nlocal memory, and %s does not accept it:" % (a.accepted or "nothing"))
        print("\n".join("  " + f for f in found))
        sys.exit(1)
    print("no kernel uses local memory" if not a.accepted else "no kernel uses local memory but what %s accepts" % a.accepted)


if __name__ == "__main__":
    main()
