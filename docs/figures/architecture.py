"""Draws docs/figures/architecture.svg: the layers of pyproject.toml, the highest first.

    python docs/figures/architecture.py

Boxes are light with dark text and the rest is mid-grey, so that the picture reads on a light and on a dark page.
"""

import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WIDTH, ROW, GAP, TOP, LEFT = 480, 34, 5, 8, 44
GROUPS = {
    "cli studio report study exchange": ("#dbeafe", "what a person starts and reads"),
    "baselines tracking evaluation training": ("#dcfce7", "learning and measuring"),
    "pool merging store": ("#fef3c7", "modules: kept, merged, composed"),
    "data backbones": ("#fce7f3", "images and networks"),
    "heads class_stats regularizers curvature adapters": ("#ede9fe", "the mathematics"),
}
PLAIN = "#e5e7eb"
HOLDS = {
    "cli": "commands, flags, exit codes",
    "studio": "the page in the browser",
    "report": "figures, tables, the page",
    "study": "compare, the paper's table, estimates",
    "exchange": "PEFT, transformers, timm, ONNX",
    "baselines": "other methods, one per file",
    "tracking": "reports to TensorBoard and its like",
    "evaluation": "accuracy, editing, Theorem 1",
    "training": "one task in six steps, the loop",
    "pool": "the facade: mean, specialize, unlearn",
    "merging": "recipe, merged weights, heads",
    "store": "files, hashes, lock, verification",
    "data": "sources, streams, decoding",
    "heads": "pre-tuning, alignment, discriminant",
    "class_stats": "Gaussians, mixtures, drift",
    "regularizers": "ITA, IEL, L2, the head's",
    "curvature": "Fisher, estimators, gap",
    "backbones": "networks and how they are loaded",
    "adapters": "LoRA, full, (IA)\u00b3",
}


def layers() -> list[list[str]]:
    """The layers, the highest first, without the package's name."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip().removeprefix("intarsia.") for name in layer.split("|")] for layer in found]


def colour(name: str) -> str:
    """Of a folder's group; grey for what stands below all."""
    return next((fill for names, (fill, _) in GROUPS.items() if name in names.split()), PLAIN)


def box(x: float, y: float, width: float, name: str) -> str:
    """A folder: its name, and what it holds if there is room."""
    about = HOLDS.get(name, "") if width > WIDTH / 2 else ""
    note = f'<text x="{x + 128:g}" y="{y + 22:g}" font-size="15">{escape(about)}</text>' if about else ""
    size = min(15.0, (width - 12) / (0.66 * len(name)))
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{ROW}" rx="5" fill="{colour(name)}" stroke="#888"/>'
        f'<text x="{x + 7:g}" y="{y + 22:g}" font-size="{size:.1f}" font-weight="bold">{escape(name)}</text>{note}'
    )


def picture() -> str:
    """The SVG: a row per layer, boxes of one row side by side; the arrow says which way imports run."""
    parts: list[str] = []
    rows = layers()
    room = WIDTH - LEFT - 4
    for i, names in enumerate(rows):
        width = (room - GAP * (len(names) - 1)) / len(names)
        parts += [box(LEFT + k * (width + GAP), TOP + i * (ROW + GAP), width, name) for k, name in enumerate(names)]
    end = TOP + len(rows) * (ROW + GAP)
    arrow = (
        f'<path d="M14 {TOP} V{end - 16}" stroke="#888" stroke-width="3"/>'
        f'<path d="M6 {end - 18} h16 l-8 14 z" fill="#888"/>'
        f'<text transform="translate(28 {end // 2 - 30}) rotate(90)" font-size="15" fill="#888">imports</text>'
    )
    legend: list[str] = []
    for i, (fill, about) in enumerate(GROUPS.values()):
        y = end + 12 + 24 * i
        legend.append(
            f'<rect x="{LEFT}" y="{y}" width="{room}" height="22" rx="5" fill="{fill}" stroke="#888"/>'
            f'<text x="{LEFT + 9}" y="{y + 16}" font-size="14">{escape(about)}</text>'
        )
    height = end + 20 + 24 * len(GROUPS)
    body = "\n".join([*parts, arrow, *legend])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" viewBox="0 0 {WIDTH} {height}"'
    title = "<title>The folders of src/intarsia; imports run downwards</title>"
    return f'{head} font-family="system-ui, sans-serif" fill="#111">\n{title}\n{body}\n</svg>\n'


if __name__ == "__main__":
    (HERE / "architecture.svg").write_text(picture())
