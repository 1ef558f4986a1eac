"""Train the bundled demo model: an over-deep vision transformer for 8 x 8 images of digits.

    python -m blockfold.tools.demo.train [--out FOLDER] [--epochs N] [--threads N]

writes digits_vit.onnx and digits.npz. The network is a plain pre-norm ViT (Dosovitskiy et al.,
2021): 2 x 2 patches, a class token, learned positions, ten blocks. Nothing pushes its blocks to be
redundant: no stochastic depth, no penalty. It is simply deeper than eight by eight pixels call
for, so its later blocks have little left to do. That is the choice of a demo and no claim about
other networks.

TRAIN of the 1,797 images are trained on; the bundle is all the others, which training never sees.
The recipe was settled on another split (seed 1) and then run once on this one. Seeded: the same
versions on the same machine with the same number of threads write the same bytes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
TRAIN = 600
CLASSES, SIDE, PATCH = 10, 8, 2
WIDTH, HEADS, DEPTH = 48, 4, 10
BATCH, PEAK_RATE, WARM_UP = 60, 3e-3, 200
SCOPES = ("namespace", "pkg.torch.onnx.name_scopes")

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def split(seed: int = SEED) -> tuple[Images, Labels, Images, Labels]:
    """Images of shape (n, 1, 8, 8) in [0, 1], labels of shape (n,): trained on, then bundled."""
    pixels, digits = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
    labels = digits.astype(np.int64)
    rows = np.arange(len(labels))
    trained, bundled = (
        np.sort(part)
        for part in train_test_split(rows, train_size=TRAIN, stratify=labels, random_state=seed)
    )
    return images[trained], labels[trained], images[bundled], labels[bundled]


class Attention(nn.Module):
    """Multi-head self-attention, (n, tokens, width) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        width = self.out.in_features
        heads = (-1, x.shape[1], HEADS, width // HEADS)
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = (q @ k.transpose(2, 3) * heads[3] ** -0.5).softmax(dim=-1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).reshape(-1, x.shape[1], width))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(x)); (n, tokens, width) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.attention(self.attention_norm(x))
        z: Tensor = y + self.mlp(self.mlp_norm(y))
        return z


class VisionTransformer(nn.Module):
    """Images of shape (n, 1, 8, 8) to logits of shape (n, 10)."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(image), -1, -1), patches], dim=1)
        logits: Tensor = self.head(self.norm(self.blocks(x + self.positions)[:, 0]))
        return logits


def augment(images: Tensor) -> Tensor:
    """Turn by up to 10 degrees, scale by 10 %, move by half a pixel, add noise: same shape."""
    n = len(images)
    most = torch.tensor([math.radians(10), 0.1, 0.1, 1 / SIDE, 1 / SIDE])
    angle, sx, sy, dx, dy = ((torch.rand(n, 5) * 2 - 1) * most).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    across = torch.stack([(1 + sx) * cos, -(1 + sx) * sin, dx], 1)
    down = torch.stack([(1 + sy) * sin, (1 + sy) * cos, dy], 1)
    maps = torch.stack([across, down], 1)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    return (moved + 0.05 * torch.randn_like(moved)).clamp(0, 1)


def fit(
    model: VisionTransformer,
    images: Images,
    labels: Labels,
    epochs: int,
    *,
    penalty: Callable[[], Tensor] | None = None,
    after_step: Callable[[float], None] | None = None,
) -> None:
    """Train in place; the model is left in eval mode.

    `penalty` is one more term in the loss; `after_step` is told the share of the steps done.
    """
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = max(1, epochs * (len(x) // BATCH))

    def rate(step: int) -> float:
        return min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(x)).chunk(len(x) // BATCH):
            loss = functional.cross_entropy(model(augment(x[rows])), y[rows], label_smoothing=0.1)
            if penalty is not None:
                loss = loss + penalty()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if after_step is not None:
                after_step(schedule.last_epoch / steps)
            total += loss.item() * len(rows)
        if epoch % 10 == 0:
            sys.stderr.write(f"epoch {epoch}/{epochs}: loss {total / len(x):.3f}\n")
    model.eval()


def accuracy(model: VisionTransformer, images: Images, labels: Labels) -> float:
    with torch.inference_mode():
        guesses = model(torch.from_numpy(images)).argmax(1).numpy()
    return float((guesses == labels).mean())


def export(model: VisionTransformer, path: Path) -> None:
    """One ONNX file, batch free, weights inside; of the exporter's notes only the scopes are kept.

    Stack traces hold paths of this machine; this module's name depends on how it was started.
    """
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, SIDE, SIDE),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: "batch"}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    del proto.graph.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del value.metadata_props[:]
    for node in proto.graph.node:
        notes = {note.key: note.value for note in node.metadata_props if note.key in SCOPES}
        del node.metadata_props[:]
        for key, note in notes.items():
            node.metadata_props.add(key=key, value=note.replace(f"{Block.__module__}.", ""))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the demo model, write it and its images.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=300, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    images, labels, held_images, held_labels = split()
    model = VisionTransformer()
    fit(model, images, labels, options.epochs)
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out / "digits.npz", image=held_images, labels=held_labels)
    export(model, options.out / "digits_vit.onnx")
    sys.stderr.write(
        f"accuracy: {accuracy(model, images, labels):.2%} on {len(labels)} trained on, "
        f"{accuracy(model, held_images, held_labels):.2%} on {len(held_labels)} held out\n"
    )


if __name__ == "__main__":
    main()
