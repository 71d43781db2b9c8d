#!/usr/bin/python3
"""PyTorch's training step on the same work as `effnet bench train`: torchvision's EfficientNet, fp32, channels_last, resident
images; forward, cross-entropy with label smoothing, backward, RMSprop.  Prints the median of the steps' images per second.

    /usr/bin/python3 bench_pytorch.py --batch 16 --image-size 224 --threads 2 --steps 10 --json

In PyTorch's favour: no moving average of the weights (effnet's step has one), and its RMSprop is the simpler one.
--tuned starts again with what helps PyTorch on a CPU: glibc keeps freed memory, huge pages, AVX-512 kernels in ATen, and the
multi-tensor optimizer.  About a fifth of an untuned step is glibc returning large tensors to the kernel and faulting them in."""
import argparse
import json
import os
import resource
import statistics
import sys
import time

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "ATEN_CPU_CAPABILITY": "avx512",
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="b0", help="b0 to b7")
    p.add_argument("--image-size", type=int, default=224)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--warm", type=int, default=2, help="steps before the measured ones")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--tuned", action="store_true")
    p.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    return p.parse_args()


def cpu_has_avx512():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        return "avx512f" in f.read()


def main():
    a = arguments()
    if a.tuned and os.environ.get("EN_PEER_TUNED") != "1":      # these are read before main: start again with them
        env = dict(os.environ, EN_PEER_TUNED="1", **TUNED)
        if not cpu_has_avx512():
            del env["ATEN_CPU_CAPABILITY"]
        os.execve(sys.executable, [sys.executable] + sys.argv, env)
    import torch
    import torchvision

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = getattr(torchvision.models, "efficientnet_" + a.model)(weights=None).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.001, alpha=0.9, eps=0.001, momentum=0.9, weight_decay=1e-5,
                                    **({"foreach": True} if a.tuned else {}))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    images = torch.rand(a.batch, 3, a.image_size, a.image_size).mul_(4).sub_(2).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (a.batch,))

    def step():
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        return time.perf_counter() - began

    for _ in range(a.warm):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = [step() for _ in range(a.steps)]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "framework": "pytorch " + torch.__version__, "torchvision": torchvision.__version__, "model": "efficientnet_" + a.model,
        "resolution": a.image_size, "images": a.batch, "threads": a.threads, "steps": a.steps, "tuned": a.tuned,
        "images_per_s": a.batch / statistics.median(seconds), "images_per_s_best": a.batch / min(seconds),
        "step_s": statistics.median(seconds), "peak_memory_bytes": usage.ru_maxrss * 1024,
        "page_faults_per_step": (usage.ru_minflt - faults) / a.steps,
    }
    if a.json:
        print(json.dumps(result))
    else:
        print("{framework}, {model} at {resolution} px, {images} images a step, {threads} threads{how}: {images_per_s:.1f} images/s "
              "(best {images_per_s_best:.1f}), peak {gib:.2f} GiB".format(
                  how=", tuned" if a.tuned else "", gib=result["peak_memory_bytes"] / 2**30, **result))


if __name__ == "__main__":
    main()
