"""The CUDA kernel's arithmetic, run by Triton's interpreter on a CPU, against the plain path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from intarsia.curvature import squares as fisher

pytest.importorskip("triton")

PROGRAM = """
import torch
from cases import head, inputs, seeded, split_backbone
from intarsia.curvature import fisher, squares
from intarsia.curvature.fisher import diagonal_fisher
from intarsia.curvature.squares import add_squares_by_products as plain
from intarsia.curvature.triton_squares import add_squares

generator = torch.Generator().manual_seed(0)
for images, tokens, width, outputs in ((3, 5, 7, 4), (11, 40, 70, 65), (1, 33, 64, 128), (16, 1, 3, 130)):
    a = torch.randn(2 * images, tokens, width, generator=generator)[::2]  # every other image, as the halves are
    g = torch.randn(2 * images, tokens, outputs, generator=generator)[1::2]
    start = torch.rand(outputs, width, generator=generator)
    got, expected = start.clone(), start.clone()
    add_squares(got, a, g, 0.5)
    plain(expected, a, g, 0.5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    turned = start.clone()  # a transposed input is made contiguous
    add_squares(turned, a.transpose(1, 2).contiguous().transpose(1, 2), g, 0.5)
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-4)

into = torch.ones(4, 7)  # no image at all, as half of a batch of one: nothing is launched, nothing added
add_squares(into, torch.zeros(0, 5, 7), torch.zeros(0, 5, 4))
assert into.eq(1).all()

theta0, classifier = split_backbone(dtype=torch.float32), head(3, 8, dtype=torch.float32)
for count in (1, 65):
    images = inputs(count, dtype=torch.float32)
    expected = diagonal_fisher(theta0, classifier, images.split(64), generator=seeded(0))
    fisher.add_squares = add_squares
    got = diagonal_fisher(theta0, classifier, images.split(64), generator=seeded(0))
    fisher.add_squares = squares.add_squares
    for name, sums in expected.sums.items():
        torch.testing.assert_close(got.sums[name], sums, rtol=1e-4, atol=1e-6)
    assert abs(got.error - expected.error) < 1e-4
print("equal")
"""


@pytest.mark.slow
def test_kernel_adds_what_the_plain_path_adds() -> None:
    paths = [str(Path(__file__).parent), *sys.path]  # of this process: where cases and the package are
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


def test_a_cpu_takes_the_plain_path_and_any_machine_finds_the_kernel() -> None:
    assert fisher._kernel() is not None
    into = torch.zeros(2, 3)
    fisher.add_squares(into, torch.ones(1, 4, 3), torch.ones(1, 4, 2))
    assert into.tolist() == [[16.0] * 3] * 2
