#!/usr/bin/env python3
"""PyTorch's training step on a GPU, on the same work as `effnet bench train --device cuda`: EfficientNet in channels_last under
bf16 autocast, resident images; forward, cross-entropy with label smoothing, backward, RMSprop, moving average of the weights.

    bench_pytorch_gpu.py --model b0 --image-size 224 --batch 256 --mode eager --json

--mode eager, or a mode of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune-no-cudagraphs, max-autotune.
In PyTorch's favour: images wait in bf16 and normalised; symmetric padding, inside the convolutions (TensorFlow's takes
another sweep); cuDNN chooses by trying (cudnn.benchmark); loss and network are compiled as one; RMSprop and the moving average
are multi-tensor calls; nothing waits for the GPU between steps.  A step is the time between two events on its stream, so
that launches of one step overlap the work of the one before, as in a training.

Ends with 77 and a sentence where it cannot be measured: no PyTorch, no GPU."""
import argparse
import json
import statistics
import sys
import time

CANNOT = 77
MODES = ("eager", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="b0", help="b0 to b7")
    p.add_argument("--image-size", type=int, default=224)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--warm", type=int, default=10, help="steps before the measured ones; compiling happens in the first")
    p.add_argument("--mode", choices=MODES, default="eager")
    p.add_argument("--library", choices=("torchvision", "timm"), default="torchvision")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to see that this program works")
    p.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    return p.parse_args()


def cannot(why):
    print("bench_pytorch_gpu: " + why, file=sys.stderr)
    sys.exit(CANNOT)


def modules(a):
    try:
        import torch
        if a.library == "timm":
            import timm as library
        else:
            import torchvision as library
    except ImportError as e:
        cannot("%s has no %s" % (sys.executable, e.name))
    if a.device == "cuda" and not torch.cuda.is_available():
        cannot("torch %s sees no GPU" % torch.__version__)
    if a.mode != "eager" and not hasattr(torch, "compile"):
        cannot("torch %s has no torch.compile" % torch.__version__)
    return torch, library


def network(a, library):
    if a.library == "timm":
        return library.create_model("efficientnet_" + a.model, drop_path_rate=0.2)
    return getattr(library.models, "efficientnet_" + a.model)(weights=None)


class Step:
    """One training step; every call queues it and returns."""

    def __init__(self, a, torch, library):
        self.torch, self.a = torch, a
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        model = network(a, library).to(a.device, memory_format=torch.channels_last).train()
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        self.params = list(model.parameters())
        self.averaged = self.params + [b for b in model.buffers() if b.is_floating_point()]
        self.ema = [t.detach().clone() for t in self.averaged]
        self.optimizer = torch.optim.RMSprop(self.params, lr=0.001, alpha=0.9, eps=0.001, momentum=0.9, weight_decay=1e-5, foreach=True)
        self.images = (torch.randn(a.batch, 3, a.image_size, a.image_size, device=a.device)
                       .to(torch.bfloat16).to(memory_format=torch.channels_last))
        self.labels = torch.randint(0, 1000, (a.batch,), device=a.device)

        def loss(images, labels):
            with torch.autocast(a.device, dtype=torch.bfloat16):
                return criterion(model(images).float(), labels)

        self.loss = loss if a.mode == "eager" else torch.compile(loss, mode=a.mode)

    def __call__(self):
        torch = self.torch
        if self.a.mode in ("reduce-overhead", "max-autotune"):
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.images, self.labels)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(self.ema, 0.9999)
            torch._foreach_add_(self.ema, self.averaged, alpha=0.0001)
        return loss


def measure_gpu(a, torch, step):
    """(seconds of each step, seconds of all by the host's clock, loss, peak bytes of tensors, peak bytes taken from the device)"""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(a.steps + 1)]
    began = time.perf_counter()
    marks[0].record()
    for mark in marks[1:]:
        loss = step()
        mark.record()
    torch.cuda.synchronize()
    whole = time.perf_counter() - began
    seconds = [b.elapsed_time(e) / 1e3 for b, e in zip(marks, marks[1:])]
    return seconds, whole, float(loss), torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def measure_cpu(a, step):
    seconds = []
    for _ in range(a.steps):
        began = time.perf_counter()
        loss = float(step())
        seconds.append(time.perf_counter() - began)
    return seconds, sum(seconds), loss, 0, 0


def main():
    a = arguments()
    torch, library = modules(a)
    began = time.perf_counter()
    step = Step(a, torch, library)
    for _ in range(max(a.warm, 1)):
        step()
    if a.device == "cuda":
        torch.cuda.synchronize()
    warmed = time.perf_counter() - began
    seconds, whole, loss, allocated, reserved = measure_gpu(a, torch, step) if a.device == "cuda" else measure_cpu(a, step)
    if loss != loss:
        print("bench_pytorch_gpu: the loss is NaN: this was no training step", file=sys.stderr)
        sys.exit(1)
    median = statistics.median(seconds)
    result = {
        "framework": "pytorch " + torch.__version__, "library": "%s %s" % (a.library, library.__version__), "mode": a.mode,
        "model": "efficientnet_" + a.model, "resolution": a.image_size, "images": a.batch, "device": a.device,
        "device_name": torch.cuda.get_device_name() if a.device == "cuda" else "cpu", "steps": a.steps,
        "images_per_s": a.batch / median, "images_per_s_best": a.batch / min(seconds), "images_per_s_overall": a.batch * a.steps / whole,
        "step_s": median, "warm_up_s": warmed, "device_memory_bytes": reserved, "allocated_memory_bytes": allocated,
    }
    if a.json:
        print(json.dumps(result))
    else:
        print("{framework} {mode}, {model} at {resolution} px, {images} images a step, {device_name}: {images_per_s:.1f} images/s "
              "(best {images_per_s_best:.1f}), {gib:.2f} GiB, ready after {warm_up_s:.0f} s".format(gib=reserved / 2**30, **result))


if __name__ == "__main__":
    main()
