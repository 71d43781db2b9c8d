#!/usr/bin/env python3
"""Opens a checkpoint of effnet in PyTorch: load_checkpoint.py RUN/checkpoints/best.h5 [--raw]

/model and /ema of a checkpoint are state dicts: the link names are timm's keys in timm's order, the values float32 in
PyTorch's layout.  num_batches_tracked, which PyTorch does not need in evaluation, is left out, and timm loads a plain dict
without it strictly:

    with h5py.File("best.h5") as f:
        state = {key: torch.from_numpy(value[()]) for key, value in f["ema"].items()}
    model = timm.create_model("tf_efficientnet_b0", num_classes=f.attrs["classes"])
    model.load_state_dict(state)

torchvision has the same tensors in the same order under other names, but symmetric padding and (B0 to B4) a batch-norm eps
of 1e-5, while these weights were trained with TensorFlow's SAME padding and 1e-3: as_torchvision() sets both, so that the
network computes what effnet computes.  Without that step the weights load and accuracy is lost silently.

Needs h5py and torch; torchvision for as_torchvision().
"""
import argparse
import sys

import h5py
import torch


def state_dict(path, group="ema"):
    """(tensors by timm's keys in timm's order, attributes of the run)"""
    with h5py.File(path, "r") as f:
        if "complete" not in f.attrs:
            sys.exit(f"{path} is not a whole checkpoint of effnet")
        if group not in f:
            sys.exit(f"{path} has no /{group}")
        attrs = {key: value.decode() if isinstance(value, bytes) else value for key, value in f.attrs.items()}
        return {key: torch.from_numpy(value[()]) for key, value in f[group].items()}, attrs


def pad_same(conv):
    """Makes a convolution pad as TensorFlow's SAME does: the odd row and column go below and to the right."""
    k, s = conv.kernel_size[0], conv.stride[0]
    conv.padding = (0, 0)

    def pad(_, inputs):
        h, w = inputs[0].shape[-2:]
        ph, pw = (max((-(-n // s) - 1) * s + k - n, 0) for n in (h, w))
        return torch.nn.functional.pad(inputs[0], (pw // 2, pw - pw // 2, ph // 2, ph - ph // 2))

    conv.register_forward_pre_hook(pad)


def as_torchvision(state, attrs):
    import torchvision

    model = getattr(torchvision.models, attrs["model"])(num_classes=int(attrs["classes"]))
    ours = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    if len(ours) != len(state):
        sys.exit(f"torchvision's {attrs['model']} has {len(ours)} tensors, the checkpoint {len(state)}: other coefficients?")
    renamed = {}
    for (theirs, value), (key, tensor) in zip(ours.items(), state.items()):
        if value.shape != tensor.shape:
            sys.exit(f"{key} {tuple(tensor.shape)} does not fit torchvision's {theirs} {tuple(value.shape)}")
        renamed[theirs] = tensor
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size[0] > 1:
            pad_same(module)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description="opens a checkpoint of effnet in torchvision")
    parser.add_argument("checkpoint")
    parser.add_argument("--raw", action="store_true", help="/model instead of /ema")
    args = parser.parse_args()
    state, attrs = state_dict(args.checkpoint, "model" if args.raw else "ema")
    model = as_torchvision(state, attrs)
    side = int(attrs["resolution"])
    with torch.no_grad():
        logits = model(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))
    print(f"{attrs['model']}, step {attrs['step']}: {len(state)} tensors, "
          f"{sum(p.numel() for p in model.parameters())} parameters; noise gives {logits.shape[1]} logits, "
          f"largest {logits.max():.6g} at {int(logits.argmax())}")


if __name__ == "__main__":
    main()
