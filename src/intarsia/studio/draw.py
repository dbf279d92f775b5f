"""Tables, heat maps and curves as HTML; all text in it is escaped, colours follow the page's light or dark theme."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from intarsia.report.figures import COLOURS

Cell = str | Markup | float | None
DASHES = ("", "6 3", "2 3", "8 2 2 2")
"""Of lines, beside their colours."""


def cell(value: Cell) -> Markup:
    """A table's cell: numbers with one decimal, None as a dash."""
    text = "–" if value is None else f"{value:.1f}" if isinstance(value, float) else value
    return Markup("<td>{}</td>").format(text)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], kind: str = "numbers") -> Markup:
    """A table that scrolls by itself where the page is too narrow for it; the first cell of a row names it."""
    heads = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in head)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(row[0], Markup("").join(map(cell, row[1:]))) for row in rows
    )
    return _wide(caption, kind, heads, body)


def sortable(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], values: Sequence[Sequence[float | str | None]]
) -> Markup:
    """A table whose headings are buttons that sort it (``page.js``).

    Args:
        caption: what it shows.
        head: names of the columns.
        rows: what is written.
        values: what is sorted by, of the same shape.
    """
    heads = Markup("").join(
        Markup('<th scope="col" aria-sort="none"><button type="button" class="sort">{}</button></th>').format(name)
        for name in head
    )
    body = Markup("").join(
        Markup('<tr><th scope="row" data-value="{}">{}</th>{}</tr>').format(
            keys[0],
            row[0],
            Markup("").join(
                Markup('<td data-value="{}">{}</td>').format("" if key is None else key, text)
                for key, text in zip(keys[1:], row[1:], strict=True)
            ),
        )
        for row, keys in zip(rows, values, strict=True)
    )
    return _wide(caption, "numbers", heads, body)


def _wide(caption: str, kind: str, heads: Markup, body: Markup) -> Markup:
    """A table that may be wider than the page, reachable by keyboard; what it shows stands above."""
    return Markup(
        '<p class="caption">{0}</p><div class="wide" tabindex="0" role="region" aria-label="{0}">'
        '<table class="table {1}"><thead><tr>{2}</tr></thead><tbody>{3}</tbody></table></div>'
    ).format(caption, kind, heads, body)


def heat(
    caption: str, names: Sequence[str], rows: Sequence[Sequence[float]], form: str, most: float, down: str, across: str
) -> Markup:
    """A square of numbers, the larger the stronger its colour: blue above zero, orange below.

    Args:
        caption: what the numbers are.
        names: of rows and columns.
        rows: the numbers.
        form: how one is written.
        most: the number of the strongest colour.
        down: what a row is.
        across: what a column is.
    """

    def square(value: float) -> Markup:
        share = 0.7 * min(1.0, abs(value) / most)
        colour = "0 114 178" if value >= 0 else "213 94 0"
        return Markup('<td style="background-color: rgb({} / {:.2f})">{}</td>').format(
            colour, share, form.format(value)
        )

    heads = Markup("").join(Markup('<th scope="col"><span>{}</span></th>').format(name) for name in names)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, Markup("").join(map(square, row)))
        for name, row in zip(names, rows, strict=True)
    )
    corner = Markup('<td class="corner">{} ↓ {} →</td>').format(down, across)
    return _wide(caption, "heat", corner + heads, body)


def change(now: float, before: float) -> Markup:
    """A difference in points, with an arrow that says which way."""
    away = now - before
    if abs(away) < 0.05:
        return Markup('<span class="same">= 0.0</span>')
    word, arrow = ("up", "▲") if away > 0 else ("down", "▼")
    return Markup('<span class="{}"><span aria-hidden="true">{}</span><i class="said">{}</i> {}</span>').format(
        word, arrow, word, f"{abs(away):.1f}"
    )


def figures(values: Mapping[str, tuple[str, Markup | str]]) -> Markup:
    """A few large numbers, each with its name and a word below."""
    items = Markup("").join(
        Markup("<div><dt>{}</dt><dd><b>{}</b> {}</dd></div>").format(name, number, note)
        for name, (number, note) in values.items()
    )
    return Markup('<dl class="figures">{}</dl>').format(items)


def curve(
    caption: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    across: str,
    up: str,
    *,
    limits: tuple[float, float] | None = None,
    at: float | None = None,
) -> Markup:
    """Lines over a common axis, with a mark where the page's control stands.

    Args:
        caption: what is seen, in words.
        lines: name -> its points, by x.
        across: the axis's name.
        up: the other's.
        limits: of that; those of the points if None.
        at: x of the mark.
    """
    points = [point for line in lines.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs), max(xs)
    low, high = limits or (min(0.0, *ys), max(ys) * 1.05 or 1.0)
    right, high = (right if right > left else left + 1), (high if high > low else low + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return 44 + 300 * (x - left) / (right - left), 170 - 150 * (y - low) / (high - low)

    parts = [Markup("")]
    for number in range(5):
        value = low + (high - low) * number / 4
        _, y = place(left, value)
        parts.append(Markup('<line class="grid" x1="44" x2="344" y1="{0}" y2="{0}"/>').format(f"{y:.1f}"))
        parts.append(_text(38, y + 4, f"{value:.3g}", "end"))
    for number in range(5):
        value = left + (right - left) * number / 4
        parts.append(_text(place(value, low)[0], 186, f"{value:.2g}", "middle"))
    if at is not None and left <= at <= right:
        x, _ = place(at, low)
        parts.append(Markup('<line class="mark" x1="{0}" x2="{0}" y1="20" y2="170"/>').format(f"{x:.1f}"))
    for (name, line), colour, dash in zip(lines.items(), COLOURS, DASHES, strict=False):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line)
        parts.append(
            Markup('<polyline points="{}" stroke="{}" stroke-dasharray="{}"><title>{}</title></polyline>').format(
                path, colour, dash, name
            )
        )
        parts += [
            Markup('<circle cx="{}" cy="{}" r="2.5" fill="{}"/>').format(*(f"{v:.1f}" for v in place(x, y)), colour)
            for x, y in line
        ]
    parts += [_text(194, 204, across, "middle"), _text(44, 12, up, "start")]
    keys = Markup("").join(
        Markup(
            '<li><svg viewBox="0 0 24 8" aria-hidden="true"><line x1="0" x2="24" y1="4" y2="4" stroke="{}" '
            'stroke-dasharray="{}"/></svg>{}</li>'
        ).format(colour, dash, name)
        for name, colour, dash in zip(lines, COLOURS, DASHES, strict=False)
    )
    return Markup(
        '<figure class="curve"><ul class="keys">{}</ul><svg viewBox="0 0 356 210" role="img" aria-label="{}">{}</svg>'
        "<figcaption>{}</figcaption></figure>"
    ).format(keys, caption, Markup("").join(parts), caption)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.1f}", f"{y:.1f}", anchor, text)


def image(source: str, name: str) -> Markup:
    """A picture in the page's text.

    Args:
        source: of ``report.pictures``.
        name: what is on it.
    """
    return Markup('<img alt="{0}" title="{0}" src="data:image/png;base64,{1}">').format(name, source)


def bars(answers: Sequence[tuple[str, float]]) -> Markup:
    """Classes and their probabilities, the most probable first."""
    items = Markup("").join(
        Markup('<li><span class="bar" style="width: {}%"></span><span>{}</span><span>{} %</span></li>').format(
            round(100 * p), name, round(100 * p)
        )
        for name, p in answers
    )
    return Markup('<ol class="bars">{}</ol>').format(items)


def alert(text: str) -> Markup:
    """What is wrong."""
    return Markup('<p class="note" role="alert">{}</p>').format(text)


def note(text: str) -> Markup:
    """A line of explanation."""
    return Markup('<p class="note">{}</p>').format(text)
