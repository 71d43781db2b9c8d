#!/usr/bin/env python3
"""Weights travel between effnet and torchvision, and both give the same logits: exchange_torchvision.py --effnet PROGRAM

  1. a checkpoint of effnet, exported under torchvision's names, evaluated by torchvision (with its padding and eps set to those that the
     file names) and by effnet;
  2. weights of torchvision's own network, random and calibrated, in float32, float16 and bfloat16, imported and evaluated by effnet, with
     torchvision's padding and eps; once with other pixels;
  3. activation maps of classes, for the same weights and picture;
  4. MobileNetV2 and ResNet-50, both ways;
  5. networks whose names follow other patterns: every tensor of them comes back from import and export as it was.

The pixels are the same by construction: for pictures of side S+32, effnet's evaluation crop is their middle, S x S, and resizing it to S
changes nothing.  1e-4 between the logits: both sum 1000 products and more in float32 in another order, over some 50 layers; logits are of size
1, and that they differ by more than 0.01 between pictures is checked.

Without torch or torchvision it exits with 77, which ctest takes for skipped."""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile

try:
    import h5py
    import numpy as np
    import torch
    import torchvision
    from PIL import Image
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    from load_checkpoint import pad_same
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

SIDE, CLASSES, TOLERANCE = 64, 10, 1e-4
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


def save(path, state):
    """safetensors, written as the format says"""
    header, values = {}, b""
    for key, t in state.items():
        raw = t.contiguous().view(torch.int16 if t.element_size() == 2 else t.dtype).numpy().tobytes()
        header[key] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [len(values), len(values) + len(raw)]}
        values += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + values)


def load(path):
    with open(path, "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        header, raw = json.loads(f.read(n)), f.read()
    meta = header.pop("__metadata__", {})
    end = max(t["data_offsets"][1] for t in header.values())
    assert end == len(raw) and (8 + n) % 8 == 0, "values without a gap, aligned"
    return {key: torch.from_numpy(np.frombuffer(raw[slice(*t["data_offsets"])], "<f4").reshape(t["shape"]).copy()) for key, t in header.items()}, meta


def set_variant(model, meta):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = float(meta["bn_eps"])
        if meta["padding"] == "tf_same" and isinstance(module, torch.nn.Conv2d) and module.kernel_size[0] > 1:
            pad_same(module)


def scaled_b0(width, depth):
    stages = ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3), (6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4),
              (6, 3, 1, 192, 320, 1))
    return EfficientNet([MBConvConfig(*stage, width_mult=width, depth_mult=depth) for stage in stages], 0.2, num_classes=CLASSES)


def run(args, code=0):
    r = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if r.returncode != code:
        sys.exit(f"{' '.join(args)}: exit code {r.returncode} instead of {code}\n{r.stdout}")
    return r.stdout


def draw_pictures(folder):
    """One picture a class, smooth enough to differ in more than noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for c in range(CLASSES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((SIDE + 32,) * 2, Image.BICUBIC)
        os.makedirs(f"{folder}/val/class{c}")
        coarse.save(f"{folder}/val/class{c}/0.png")
        pictures.append(np.asarray(coarse)[16:16 + SIDE, 16:16 + SIDE])
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x - mean) / std


class Peers:
    def __init__(self, effnet, folder):
        self.effnet, self.folder, self.failed = effnet, folder, False
        self.data = f"{folder}/pictures"
        self.x = draw_pictures(self.data)

    def path(self, name):
        return f"{self.folder}/{name}"

    def logits(self, checkpoint, *options):
        out = f"{checkpoint}.logits.h5"
        run([self.effnet, "eval", "--checkpoint", checkpoint, "--data", self.data, "--device", "cpu", "--threads", "1", "--logits", out,
             "--eval-size", str(SIDE), *options])
        with h5py.File(out) as f:
            return torch.from_numpy(f["logits"][()])

    def compare(self, what, ours, model, x=None):
        with torch.no_grad():
            theirs = model.eval()(self.x if x is None else x)
        apart, spread = float((ours - theirs).abs().max()), float(theirs.std(0).mean())
        right = apart <= TOLERANCE and spread > 100 * TOLERANCE
        print(f"{'same ' if right else 'WRONG'} {what}: logits of {len(ours)} pictures differ by {apart:.2e}; they spread by {spread:.2g}")
        self.failed |= not right

    def ours_in_torchvision(self):
        run([self.effnet, "synth", self.path("shapes"), "--train-per-class", "10", "--val-per-class", "1", "--synth-size", "64"])
        run([self.effnet, "train", "--data", self.path("shapes"), "--run", self.path("run"), "--device", "cpu", "--threads", "1", "--width", "0.25",
             "--depth", "0.5", "--image-size", str(SIDE), "--steps", "60", "--global-batch", "20", "--augment", "basic", "--warmup-epochs", "1",
             "--bn-momentum", "0.1", "--ema", "0.9", "--checkpoint-every", "0"])
        for weights in ("ema", "raw"):
            file = self.path(f"{weights}.safetensors")
            run([self.effnet, "export", self.path("run"), file, "--to", "torchvision", "--weights", weights])
            state, meta = load(file)
            model = scaled_b0(float(meta["width"]), float(meta["depth"]))
            model.load_state_dict(state)                        # strict: nothing is missing, nothing is left over
            set_variant(model, meta)
            newest = sorted(os.listdir(self.path("run/checkpoints")))[-1]
            imported = self.path(f"{weights}.h5")
            run([self.effnet, "import", file, imported, "--class-names", self.data])
            self.compare(f"effnet's {weights} weights in torchvision ({newest})", self.logits(imported, "--resize", "bicubic"), model)

    def other_bases_of_ours(self):
        """A few steps of each; the weights need not be good, but none of them is its first value any more."""
        for known, options, theirs in (("mobilenetv2", ["--width", "0.5"], lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES, width_mult=0.5)),
                                       ("resnet50", [], lambda: torchvision.models.resnet50(num_classes=CLASSES))):
            run([self.effnet, "train", "--model", known, *options, "--data", self.path("shapes"), "--run", self.path(known), "--device", "cpu", "--threads", "1",
                 "--image-size", str(SIDE), "--steps", "4", "--global-batch", "10", "--augment", "basic", "--checkpoint-every", "0"])
            file = self.path(f"{known}.safetensors")
            run([self.effnet, "export", self.path(known), file, "--to", "torchvision", "--weights", "raw"])
            state, meta = load(file)
            model = theirs()
            model.load_state_dict(state)
            assert abs(float(meta["bn_eps"]) - 1e-5) < 1e-11 and meta["padding"] == "symmetric", meta
            run([self.effnet, "import", file, self.path("net.h5"), "--class-names", self.data])
            self.compare(f"effnet's {known} in torchvision", self.logits(self.path("net.h5"), "--resize", "bicubic"), model)
            os.remove(self.path("net.h5"))

    def calibrated(self, name):
        torch.manual_seed(1)
        model = getattr(torchvision.models, name)(num_classes=CLASSES)
        for part, module in model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None                          # running statistics: the mean over the passes
                end = part.startswith("layer") and part.endswith("bn3")    # of a bottleneck: it adds a little, or 16 of them amplify rounding tenfold
                torch.nn.init.uniform_(module.weight, *((0.1, 0.3) if end else (0.8, 1.2)))
                torch.nn.init.uniform_(module.bias, -0.1, 0.1)
        with torch.no_grad():
            for _ in range(3):
                model.train()(self.x)
        return model

    def torchvisions_in_ours(self):
        model = self.calibrated("efficientnet_b0")
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in model.state_dict().items()}
            name = NAMES[dtype]
            save(self.path(f"{name}.safetensors"), state)
            said = run([self.effnet, "import", self.path(f"{name}.safetensors"), self.path(f"{name}.h5"), "--model", "b0", "--class-names", self.data])
            assert "symmetric padding, batch-norm eps 1e-05" in said, said
            model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
            self.compare(f"torchvision's efficientnet_b0, {name}, in effnet", self.logits(self.path(f"{name}.h5")), model)
        for name, known in (("mobilenet_v2", "mobilenetv2"), ("resnet50", "resnet50")):
            other = self.calibrated(name)
            save(self.path("in.safetensors"), other.state_dict())
            run([self.effnet, "import", self.path("in.safetensors"), self.path("net.h5"), "--model", known, "--from", "torchvision", "--class-names", self.data])
            self.compare(f"torchvision's {name} in effnet", self.logits(self.path("net.h5")), other)
            os.remove(self.path("net.h5"))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        run([self.effnet, "import", self.path("BF16.safetensors"), self.path("unit.h5"), "--model", "b0", "--class-names", self.data, "--normalise", "unit"])
        self.compare("the same fed as V2-L is, mean and deviation 0.5", self.logits(self.path("unit.h5")), model, (self.x * std + mean - 0.5) / 0.5)
        run([self.effnet, "import", self.path("F32.safetensors"), self.path("other.h5"), "--model", "b0", "--class-names", self.data, "--padding", "tf_same"])
        with torch.no_grad():
            apart = float((self.logits(self.path("other.h5")) - model.eval()(self.x)).abs().max())
        print(f"{'same ' if apart > 0.01 else 'WRONG'} with the other padding they would differ by {apart:.2g}")
        self.failed |= apart <= 0.01

    def maps(self):
        """Where a network sees a class: the classifier's row over torchvision's last activations, place by place."""
        b0, r50 = self.calibrated("efficientnet_b0").eval(), self.calibrated("resnet50").eval()
        last = torch.nn.Sequential(*list(r50.children())[:-2])  # without a convolution before the mean
        for known, model, features, weight, classes in (("b0", b0, b0.features, b0.classifier[1].weight, (None, 0, 7)), ("resnet50", r50, last, r50.fc.weight, (None, 4))):
            save(self.path("cam.safetensors"), model.state_dict())
            run([self.effnet, "import", self.path("cam.safetensors"), self.path("cam.h5"), "--model", known, "--from", "torchvision", "--class-names", self.data])
            with torch.no_grad():
                activations, logits = features(self.x[3:4])[0], model(self.x[3:4])[0]
            for asked in classes:
                c = int(logits.argmax()) if asked is None else asked
                wanted = torch.einsum("k,kyx->yx", weight[c].detach(), activations)
                said = json.loads(run([self.effnet, "cam", f"{self.data}/val/class3/0.png", "--checkpoint", self.path("cam.h5"), "--device", "cpu", "--threads", "1",
                                       "--eval-size", str(SIDE), "--out", self.path("cam.png"), "--json"] + ([] if asked is None else ["--class", f"class{c}"])))
                ours = torch.tensor(said["map"]).view(said["height"], said["width"])
                apart = float((ours - wanted).abs().max()) / float(wanted.std())
                right = said["index"] == c and ours.shape == wanted.shape and apart <= TOLERANCE and Image.open(self.path("cam.png")).size == (224, 224)
                print(f"{'same ' if right else 'WRONG'} activation map of class {c} of {known}: {said['height']} x {said['width']}, apart by {apart:.1e} of its deviation")
                self.failed |= not right
            os.remove(self.path("cam.h5"))

    def names(self):
        for name, known in (("efficientnet_b1", "b1"), ("efficientnet_v2_s", "v2s"), ("mobilenet_v2", "mobilenetv2"), ("resnet50", "resnet50")):
            torch.manual_seed(2)
            state = getattr(torchvision.models, name)(num_classes=CLASSES).state_dict()
            save(self.path("in.safetensors"), state)
            for timm in ("torchvision", "timm"):                # timm's names, too, hold each tensor once
                run([self.effnet, "import", self.path("in.safetensors"), self.path("net.h5"), "--model", known, "--from", "torchvision"])
                run([self.effnet, "export", self.path("net.h5"), self.path("out.safetensors"), "--to", timm])
                if timm == "timm":
                    os.remove(self.path("net.h5"))
                    run([self.effnet, "import", self.path("out.safetensors"), self.path("net.h5"), "--model", known])
                    os.remove(self.path("out.safetensors"))
                    run([self.effnet, "export", self.path("net.h5"), self.path("out.safetensors"), "--to", "torchvision"])
                back, _ = load(self.path("out.safetensors"))
                wanted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
                right = list(back) == list(wanted) and all(torch.equal(back[key], wanted[key]) for key in wanted)
                print(f"{'same ' if right else 'WRONG'} {name} through {timm}'s names: {len(back)} tensors of {len(wanted)}, in their order")
                self.failed |= not right
                os.remove(self.path("net.h5"))
                os.remove(self.path("out.safetensors"))
            os.remove(self.path("in.safetensors"))


def main():
    parser = argparse.ArgumentParser(description="the same logits from effnet and torchvision")
    parser.add_argument("--effnet", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        p = Peers(args.effnet, folder)
        p.ours_in_torchvision()
        p.other_bases_of_ours()
        p.torchvisions_in_ours()
        p.maps()
        p.names()
    sys.exit(1 if p.failed else 0)


if __name__ == "__main__":
    main()
