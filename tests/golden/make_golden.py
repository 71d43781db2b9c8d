#!/usr/bin/python3
"""Golden answers of a training step of EfficientNet-B0, EfficientNetV2-S, MobileNetV2 or ResNet-50, from PyTorch in float64.

    /usr/bin/python3 make_golden.py [--only b0 ...]        writes b0.h5, v2s.h5, mbv2.h5 and r50.h5 beside this file
    /usr/bin/python3 make_golden.py --full FILE.h5         writes inputs and answers in full as well (100 MB)
    /usr/bin/python3 make_golden.py --compare DUMP.h5      takes weights and batch from `effnet train --dump DUMP.h5`
                                                           and compares logits, gradients and running statistics

torchvision's networks; the EfficientNets with what distinguishes the reference: TensorFlow SAME padding, lopsided, by explicit F.pad;
batch-norm eps 1e-3; running_var takes the population variance.  Dropout and stochastic depth are off, label smoothing 0.1.

The inputs follow a formula (net_help.h states it) that C repeats to the last bit, so none of them is stored.  Of the
answers the file keeps logits, loss and, per tensor (gradients of parameters, new values of running statistics):
    norm, sum          of all elements
    samples   (32)     at indices of the formula
    projections (16)   on vectors of signs of the formula.  For an error e of a tensor, the mean of the squared errors of P
                       projections estimates |e|^2 without bias, with relative deviation sqrt(2/P) at most: 0.35 for P = 16.
                       It comes out below |e|^2/10 with probability 2e-6 (chi^2 with 16 degrees of freedom).
    float32            |answer in float32 - answer in float64|: what PyTorch's own float32 is off by
and for all runs together the sum of each tensor's weights, to tell wrong inputs from wrong answers.

The gradient of a network with ReLU jumps where an activation changes its sign.  With betas about 0 some of its million activations lie
within rounding of 0, and float32, PyTorch's as ours, is off by 1e-2 for no other reason.  So in MobileNetV2 and ResNet-50 those betas that
go right into a ReLU, or into the sum before one (the shortcut's), lie about 2: some 2 % of the activations are cut off, in the sums 10 %,
and none lies nearer to a bend than float32 is off by at most in its layer.

Groups r64, r75 are of images by the formula; groups b64, b75 of images that bytes can mean, the nearest to those (net_help.h,
formula_images).  These have no samples and no projections - C's reference network in double, which the former hold to 1e-8, has the
answers in full - but what PyTorch's bfloat16 is off by, as one trains with it: float32 weights under torch.autocast.
    bf16               |answer under autocast - answer in float64|
    bf16_logits        the same of the logits
Autocast here is the processor's: oneDNN multiplies bfloat16 and sums in float32, as tensor cores do, and rounds what it stores.
On a GPU the same operators round at the same places.  The loss is taken in float32, as autocast does there."""
import argparse
import csv
import os
import re

import h5py
import numpy as np
import torch
import torch.nn.functional as F
import torchvision

SEED, TEST, SAMPLES, PROJECTIONS = 2024, 8, 32, 16      # TEST: EN_RNG_TEST of rng.h
HERE = os.path.dirname(os.path.abspath(__file__))


# ---- the formula -----------------------------------------------------------------------------------------------------

def words(when, layer, count):
    """Word e%4 of philox(SEED; sample e/4, purpose, layer, when) for e < count: Philox4x32-10 (Salmon et al., SC11)."""
    low = np.uint64(0xffffffff)
    n = (count + 3) // 4
    c = [np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64), np.full(n, TEST << 16 | layer, np.uint64), np.full(n, when, np.uint64)]
    k = [SEED & 0xffffffff, SEED >> 32]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) & 0xffffffff, (k[1] + 0xBB67AE85) & 0xffffffff]
    return np.stack(c, axis=1).reshape(-1)[:count]


def formula(layer, shape, a, b):
    s = 2.0 * ((words(0, layer, int(np.prod(shape))) >> np.uint64(8)).astype(np.float64) * 2.0**-24) - 1.0
    return (a + b * s).astype(np.float32).astype(np.float64).reshape(shape)


def as_bytes(images):
    """What bytes can mean that is nearest: data/resize.c normalises by these floats."""
    mean, std = ((np.float32(255) * np.array(v, np.float32)).astype(np.float64) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((np.rint(images * std + mean) - mean) / std).astype(np.float32).astype(np.float64)


def weight(layer, name, shape, bent=None):
    one = name.endswith(".running_var") or (len(shape) == 1 and name.endswith(".weight"))
    if len(shape) == 4:
        fan_out = shape[2] * shape[3] * (1 if shape[1] == 1 else shape[0])        # depthwise: 1
        return formula(layer, shape, 0.0, np.sqrt(6.0 / fan_out))
    if len(shape) == 2:
        return formula(layer, shape, 0.0, 1.0 / np.sqrt(float(shape[0])))
    return formula(layer, shape, 1.0 if one else 2.0 if bent and re.search(bent, name) else 0.0, 0.2 if one else 0.1)


# ---- the network -----------------------------------------------------------------------------------------------------

class SameConv(torch.nn.Module):
    """out = ceil(in/s), total = max((out-1)s + k - in, 0), total//2 of it before."""

    def __init__(self, conv):
        super().__init__()
        self.weight, self.bias, self.stride, self.groups = conv.weight, conv.bias, conv.stride[0], conv.groups

    def forward(self, x):
        k, s, pads = self.weight.shape[-1], self.stride, []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, s, groups=self.groups)


class BatchNorm(torch.nn.Module):
    def __init__(self, bn, eps, momentum, unbiased):
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum, self.unbiased = bn.weight, bn.bias, eps, momentum, unbiased
        self.register_buffer("running_mean", bn.running_mean)
        self.register_buffer("running_var", bn.running_var)

    def forward(self, x):
        with torch.no_grad():
            y = x.to(self.running_mean.dtype)                  # under autocast x is narrower
            mean = y.mean((0, 2, 3))
            rows = y.numel() // y.shape[1]
            var = ((y - mean[:, None, None]) ** 2).sum((0, 2, 3)) / (rows - self.unbiased)
            self.new = [(1 - self.momentum) * old + self.momentum * now for old, now in ((self.running_mean, mean), (self.running_var, var))]
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class Network:
    """A file of answers: torchvision's name of the network and what it is trained with; `runs`: sides of the images, how many of them, and which;
    `bent`: which betas lie about 2; `narrow`: bfloat16 is measured too."""

    def __init__(self, file, name, runs, eps=1e-3, momentum=0.01, same=True, unbiased=False, bent=None, narrow=False):
        self.file, self.name, self.runs, self.bent, self.narrow = file, name, runs, bent, narrow
        self.eps, self.momentum, self.same, self.unbiased = eps, momentum, same, unbiased


PYTORCH = { "eps": 1e-5, "momentum": 0.1, "same": False, "unbiased": True }
B0 = Network("b0", "efficientnet_b0", ((64, 4, 0), (75, 4, 0)), narrow=True)
NETWORKS = (B0, Network("v2s", "efficientnet_v2_s", ((40, 6, 0),), momentum=0.1),
            Network("mbv2", "mobilenet_v2", ((64, 2, 0),), bent=r"(features\.(0|18)\.1|conv\.[01]\.1)\.bias$", **PYTORCH),
            Network("r50", "resnet50", ((64, 2, 5),), bent=r"layer.*(bn1|bn2|downsample\.1)\.bias$", **PYTORCH))


def network(classes, of=B0):
    drop = { "stochastic_depth_prob": 0.0 } if of.name.startswith("efficientnet") else {}
    m = getattr(torchvision.models, of.name)(weights=None, num_classes=classes, **drop)

    def replace(parent):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(parent, name, BatchNorm(child, of.eps, of.momentum, of.unbiased))
            elif of.same and isinstance(child, torch.nn.Conv2d) and child.kernel_size[0] > 1:
                setattr(parent, name, SameConv(child))
            elif isinstance(child, torch.nn.Dropout):
                child.p = 0.0
            else:
                replace(child)
    replace(m)
    return m.train()


def timm_names():
    """timm's keys; torchvision's state dict aligns with them one to one in order."""
    with open(os.path.join(HERE, "timm_b0_keys.csv"), newline="") as f:
        return [row["name"] for row in csv.DictReader(f) if not row["name"].endswith("num_batches_tracked")]


def step(model, given, images, labels, dtype, autocast=False):
    """Loss, logits, tensors by position of one forward and backward pass in `dtype`, or in bfloat16 over weights of it."""
    model = model.to(dtype)
    slots = list(model.state_dict(keep_vars=True).values())
    assert len(slots) == len(given)
    with torch.no_grad():
        for slot, value in zip(slots, given):
            slot.copy_(torch.from_numpy(value).to(dtype))
            slot.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2).contiguous()).to(dtype)
    loss = F.cross_entropy(logits, torch.from_numpy(labels).long(), label_smoothing=0.1)
    loss.backward()
    new = {id(old): value for bn in model.modules() if isinstance(bn, BatchNorm)
           for old, value in zip((bn.running_mean, bn.running_var), bn.new)}
    answers = [(slot.grad if slot.grad is not None else new[id(slot)]).detach().double().numpy() for slot in slots]
    return float(loss), logits.detach().double().numpy(), answers


# ---- the file ----------------------------------------------------------------------------------------------------------

def compact(layer, answer, single):
    flat = answer.reshape(-1)
    bits = words(1, layer, flat.size)
    index = (words(2, layer, SAMPLES) * np.uint64(flat.size)) >> np.uint64(32)
    signs = [1.0 - 2.0 * ((bits >> np.uint64(p)) & np.uint64(1)).astype(np.float64) for p in range(PROJECTIONS)]
    return np.linalg.norm(flat), flat.sum(), flat[index.astype(np.int64)], [s @ flat for s in signs], np.linalg.norm(single.reshape(-1) - flat)


def bf16_group(g, model, given, images, labels, size):
    loss, logits, exact = step(model, given, images, labels, torch.float64)
    narrow = step(model, given, images, labels, torch.float32, autocast=True)
    columns = { "norm": [np.linalg.norm(e) for e in exact], "sum": [e.sum() for e in exact],
                "bf16": [np.linalg.norm(a - e) for a, e in zip(narrow[2], exact)] }
    for key, column in columns.items():
        g[key] = np.array(column, np.float64)
    g["logits"], g["loss"], g["bf16_logits"] = logits, loss, np.linalg.norm(narrow[1] - logits)
    gradients = [i for i, slot in enumerate(model.state_dict(keep_vars=True).values()) if slot.requires_grad]
    bf16, norm = (np.array(columns[key])[gradients] for key in ("bf16", "norm"))
    print("%d px, bytes: loss %.12f; bf16 gradients are off by %.2g (median over tensors), %.2g (all together); logits by %.2g" % (
        size, loss, np.median(bf16 / norm), np.linalg.norm(bf16) / np.linalg.norm(norm), g["bf16_logits"][()] / np.linalg.norm(logits)))


def write(path, full, of, classes=10):
    model = network(classes, of)
    names = timm_names() if of is B0 else list(model.state_dict())
    shapes = [tuple(v.shape) for v in model.state_dict().values()]
    given = [weight(i, name, shape, of.bent) for i, (name, shape) in enumerate(zip(names, shapes))]
    out = h5py.File(full, "w") if full else None
    with h5py.File(path, "w") as f:
        f.attrs.update(seed=np.uint64(SEED), classes=classes, smoothing=0.1, torch=str(torch.__version__))
        f["names"] = np.array(names, "S80")
        f["weight_sum"] = np.array([g.sum() for g in given])
        for size, batch, which in of.runs:
            labels = (np.arange(batch) % classes).astype(np.int32)
            images = formula(65535 - which, (batch, size, size, 3), 0.0, 1.5)
            loss, logits, exact = step(model, given, images, labels, torch.float64)
            _, _, single = step(model, given, images, labels, torch.float32)
            rows = [compact(i, a, s) for i, (a, s) in enumerate(zip(exact, single))]
            g = f.create_group("r%d" % size)
            for key, column in zip(("norm", "sum", "samples", "projections", "float32"), zip(*rows)):
                g[key] = np.array(column, np.float64)
            g["logits"], g["loss"] = logits, loss
            if out:
                o = out.create_group("r%d" % size)
                o["images"], o["labels"], o["logits"], o["loss"] = images.astype(np.float32), labels, logits, loss
                for name, value, answer in zip(names, given, exact):
                    o["given/" + name], o["answers/" + name] = value.astype(np.float32), answer
            print("%s, %d px: loss %.12f; float32 is off by %.2g (median over tensors), %.2g at worst" % (
                of.name, size, loss, *(q([r[4] / r[0] for r in rows]) for q in (np.median, np.max))))
            if of.narrow:
                bf16_group(f.create_group("b%d" % size), model, given, as_bytes(images), labels, size)


def compare(path):
    """The step of a dump: before/<key> and the batch go in; logits, gradients/<key> and after/<key> of running statistics come
    out.  The run needs --model b0 and neither dropout nor stochastic depth."""
    names = timm_names()
    with h5py.File(path, "r") as f:
        given = [f["before/" + n][...].astype(np.float64) for n in names]
        images, labels = f["batch/images"][...], f["batch/labels"][...]
        loss, logits, exact = step(network(given[-1].size), given, images.astype(np.float64), labels, torch.float64)
        print("loss %.9g, theirs %.9g" % (loss, f["loss"][()]))
        print("logits: off by %.3g of their norm" % (np.linalg.norm(f["logits"][...] - logits) / np.linalg.norm(logits)))
        worst = []
        for i, name in enumerate(names):
            running = ".running_" in name
            theirs = f[("after/" if running else "gradients/") + name][...]
            partner = 0.0                                      # what else tells the size of the terms that were summed
            if name.endswith(".running_mean"):                 # at the start, many means are exactly 0: the deviations
                partner = 0.01 * np.linalg.norm(np.sqrt(exact[i + 1]))
            elif not running and exact[i].ndim == 1 and ".se." not in name and not name.startswith("classifier"):
                partner = np.linalg.norm(exact[i + (1 if name.endswith(".weight") else -1)])   # gamma, beta: sums of the same dz
            worst.append((np.linalg.norm(theirs - exact[i]) / np.hypot(np.linalg.norm(exact[i]), partner), name))
        for off, name in sorted(worst, reverse=True)[:10]:
            print("%10.3g  %s" % (off, name))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=HERE, metavar="DIR")
    p.add_argument("--only", nargs="+", choices=[of.file for of in NETWORKS], help="these files")
    p.add_argument("--full", metavar="FILE.h5", help="of B0")
    p.add_argument("--compare", metavar="DUMP.h5")
    a = p.parse_args()
    torch.use_deterministic_algorithms(True)
    if a.compare:
        compare(a.compare)
    else:
        for of in NETWORKS:
            if not a.only or of.file in a.only:
                write(os.path.join(a.out, of.file + ".h5"), a.full if of is B0 else None, of)


main()
