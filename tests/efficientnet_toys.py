"""A small EfficientNet of random weights, and the network once more in plain steps, with any library's convolution."""

import numpy as np

from omnidiff_jax.models.efficientnet import EfficientNetConfig, Stage

CONFIG = EfficientNetConfig(4, (Stage(1, 3, 1, 1, 3), Stage(2, 5, 2, 6, 5)), 8, 7)


def tensors(config=CONFIG, seed=0):
    """Name -> float32, as `efficientnet-lite-pytorch` has them."""
    rng = np.random.default_rng(seed)
    found = {}

    def conv(name, norm, *shape):
        found[f"{name}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        for part, low, high in (("weight", 0.5, 1.5), ("bias", 0, 1), ("running_mean", -1, 1), ("running_var", 0, 2)):
            found[f"{norm}.{part}"] = rng.uniform(low, high, shape[0]).astype(np.float32)
        found[f"{norm}.num_batches_tracked"] = np.array(1, np.int64)

    conv("_conv_stem", "_bn0", config.stem, 3, 3, 3)
    width, block = config.stem, 0
    for stage in config.stages:
        for _ in range(stage.blocks):
            name, wide = f"_blocks.{block}", width * stage.expansion
            if stage.expansion > 1:
                conv(f"{name}._expand_conv", f"{name}._bn0", wide, width, 1, 1)
            conv(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, stage.kernel, stage.kernel)
            conv(f"{name}._project_conv", f"{name}._bn2", stage.width, wide, 1, 1)
            width, block = stage.width, block + 1
    conv("_conv_head", "_bn1", config.features, width, 1, 1)
    found["_fc.weight"] = rng.normal(0, 0.3, (config.classes, config.features)).astype(np.float32)
    found["_fc.bias"] = rng.normal(0, 1, config.classes).astype(np.float32)
    return found


def by_numpy(x, kernel, stride, groups):
    """float64 [B, C, H, W] without padding, and kernel [O, C / groups, h, w] -> [B, O, H', W']; groups: one, or all."""
    found = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    if groups > 1:
        return np.einsum("bchwij,cij->bchw", found, kernel[:, 0])
    return np.einsum("bchwij,ocij->bohw", found, kernel)


def by_torch(x, kernel, stride, groups):
    """The same."""
    import torch

    found = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(kernel), stride=stride, groups=groups)
    return found.numpy()


def plainly(given, pixels, convolve, config=CONFIG):
    """Features and logits, float64, of pixels [B, H, W, 3] that are scaled already."""
    weights = {name: np.asarray(value, np.float64) for name, value in given.items()}

    def conv(x, name, norm, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        # As TensorFlow pads: what is missing for ceil(n / stride) outputs, the odd one behind.
        sides = [max((-(-n // stride) - 1) * stride + kernel.shape[2] - n, 0) for n in x.shape[2:]]
        x = np.pad(x, ((0, 0), (0, 0), *((side // 2, side - side // 2) for side in sides)))
        x = convolve(x, kernel, stride, groups)
        scale, shift, mean, variance = (
            weights[f"{norm}.{part}"][None, :, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * scale + shift

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(conv(np.transpose(pixels, (0, 3, 1, 2)).astype(np.float64), "_conv_stem", "_bn0", 2))
    block = 0
    for stage in config.stages:
        for number in range(stage.blocks):
            name, entered = f"_blocks.{block}", x
            if stage.expansion > 1:
                x = relu6(conv(x, f"{name}._expand_conv", f"{name}._bn0"))
            stride = 1 if number else stage.stride
            x = relu6(conv(x, f"{name}._depthwise_conv", f"{name}._bn1", stride, x.shape[1]))
            x = conv(x, f"{name}._project_conv", f"{name}._bn2")
            x = x + entered if number else x
            block += 1
    features = relu6(conv(x, "_conv_head", "_bn1")).mean((2, 3))
    return features, features @ weights["_fc.weight"].T + weights["_fc.bias"]
