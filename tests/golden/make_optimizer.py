#!/usr/bin/python3
"""Golden runs of the optimizers, from PyTorch in float64; LARS, which PyTorch has not, by its formula.

    /usr/bin/python3 make_optimizer.py        writes optimizer.h beside this file (needs torch and numpy, only to make it anew)

Two tensors, 19 parameters that decay and 5 that do not, and 24 steps; weights, gradients and rates follow formulas that C repeats to the
last bit (../test_kernels_optimizer_steps.c).  The settings are the float numbers that the program holds.  The file keeps the weights
after some of the steps, the accumulators after the last, and by how much PyTorch's own float32 is off from its float64 by then: the
norm over all weights."""
import os

import numpy as np
import torch

DECAYING, ELEMS, STEPS, KEPT = 19, 24, 24, (1, 2, 7, 24)
HERE = os.path.dirname(os.path.abspath(__file__))


def f32(x):
    return float(np.float32(x))


def weights():
    i = np.arange(ELEMS)
    return ((i * 37 + 11) % 97 - 48) / 64.0


def gradient(step):
    i = np.arange(ELEMS)
    return ((i * 53 + step * 29 + i * step % 13 * 7) % 101 - 50) / 128.0


def rate(base, step):
    return base * (1 + step % 3)


def run_torch(make, base, slots, dtype):
    w = torch.tensor(weights(), dtype=dtype)
    parts = [w[:DECAYING].clone().requires_grad_(), w[DECAYING:].clone().requires_grad_()]
    optimizer = make(parts)
    kept = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(base, step)
        g = torch.tensor(gradient(step), dtype=dtype)
        parts[0].grad, parts[1].grad = g[:DECAYING].clone(), g[DECAYING:].clone()
        optimizer.step()
        if step + 1 in KEPT:
            kept.append(torch.cat([p.detach() for p in parts]).double().numpy())
    ends = [torch.cat([optimizer.state[p][s].detach() for p in parts]).double().numpy() for s in slots]
    return kept, ends


def groups(parts, decay):
    return [{"params": [parts[0]], "weight_decay": decay}, {"params": [parts[1]], "weight_decay": 0.0}]


def sgd(momentum, nesterov, decay):
    return lambda parts: torch.optim.SGD(groups(parts, f32(decay)), lr=0.0, momentum=f32(momentum), nesterov=nesterov)


def adamw(beta1, beta2, eps, decay):
    return lambda parts: torch.optim.AdamW(groups(parts, f32(decay)), lr=0.0, betas=(beta1, beta2), eps=f32(eps))


def lars(base, momentum, nesterov, trust, eps, decay):
    """tensorflow/tpu models/official/efficientnet/lars_optimizer.py: the small tensor is in its skip_list."""
    w, mom, kept = weights(), np.zeros(ELEMS), []
    for step in range(STEPS):
        g, lr = gradient(step), np.full(ELEMS, rate(base, step))
        a = slice(0, DECAYING)
        wn, gn = np.linalg.norm(w[a]), np.linalg.norm(g[a])
        lr[a] *= f32(trust) * wn / (gn + f32(decay) * wn + f32(eps)) if wn > 0 and gn > 0 else 1.0
        g[a] += f32(decay) * w[a]
        g *= lr
        mom = f32(momentum) * mom + g
        w = w - (g + f32(momentum) * mom if nesterov else mom)
        if step + 1 in KEPT:
            kept.append(w)
    return kept, [mom]


def numbers(x):
    x = [float(v).hex() for v in x]
    return "{ " + ",\n    ".join(", ".join(x[i:i + 6]) for i in range(0, len(x), 6)) + " }"


def main():
    runs = []
    for name, momentum, nesterov, decay in (("sgd plain", 0, False, 0.125), ("sgd", 0.9, False, 0.01), ("sgd nesterov", 0.9, True, 0.01)):
        make, slots = sgd(momentum, nesterov, decay), ["momentum_buffer"] if momentum else []
        kept, ends = run_torch(make, 2.0**-6, slots, torch.float64)
        narrow = run_torch(make, 2.0**-6, slots, torch.float32)[0][-1]
        settings = "SGD, .sgd = { .momentum = %rf, .nesterov = %d, .weight_decay = %rf }" % (float(momentum), nesterov, decay)
        runs.append((name, settings, 2.0**-6, kept, ends, np.linalg.norm(narrow - kept[-1])))
    for name, beta1, beta2, eps, decay in (("adamw", 0.9, 0.999, 1e-8, 0.01), ("adamw heavy", 0.5, 0.75, 0.01, 0.25)):
        make, slots = adamw(beta1, beta2, eps, decay), ["exp_avg", "exp_avg_sq"]
        kept, ends = run_torch(make, 2.0**-8, slots, torch.float64)
        narrow = run_torch(make, 2.0**-8, slots, torch.float32)[0][-1]
        settings = "ADAMW, .adamw = { .beta1 = %r, .beta2 = %r, .eps = %rf, .weight_decay = %rf }" % (beta1, beta2, eps, decay)
        runs.append((name, settings, 2.0**-8, kept, ends, np.linalg.norm(narrow - kept[-1])))
    for name, nesterov, trust, eps, decay in (("lars", False, 0.001, 0.0, 0.01), ("lars nesterov", True, 0.01, 0.5, 0.05)):
        kept, ends = lars(2.0, 0.9, nesterov, trust, eps, decay)
        settings = "LARS, .lars = { .momentum = 0.9f, .nesterov = %d, .trust = %rf, .eps = %rf, .weight_decay = %rf }" % (nesterov, trust, eps, decay)
        runs.append((name, settings, 2.0, kept, ends, 0.0))
    with open(os.path.join(HERE, "optimizer.h"), "w", encoding="ascii") as out:
        out.write("/* optimizer.h - written by make_optimizer.py, which says what it is; torch %s */\n" % torch.__version__)
        out.write("enum { DECAYING = %d, ELEMS = %d, STEPS = %d, KEPT = %d };\n" % (DECAYING, ELEMS, STEPS, len(KEPT)))
        out.write("static const int kept_steps[KEPT] = { %s };\n" % ", ".join(map(str, KEPT)))
        out.write("static const struct { optimizer o; double rate, float32, w[KEPT][ELEMS], slot[2][ELEMS]; } golden[] = {\n")
        for name, settings, base, kept, ends, float32 in runs:
            out.write("{ .o = { \"%s\", %s },\n  .rate = %s, .float32 = %s,\n  .w = { %s },\n  .slot = { %s } },\n" % (
                name, settings, float(base).hex(), float(float32).hex(), ",\n  ".join(map(numbers, kept)),
                ",\n  ".join(map(numbers, ends)) or "{ 0 }"))
        out.write("};\n")


if __name__ == "__main__":
    main()
