"""How the page looks: the system's fonts, its own few rules for tables and figures, light and dark."""

from gradio.themes import Base

FONTS = ("system-ui", "sans-serif")


MONO = ("ui-monospace", "monospace")


def theme() -> Base:
    """Teal on grey, with no font but the system's: nothing is loaded from elsewhere."""
    return Base(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_700",
        block_label_text_color="*body_text_color",
        block_title_text_color="*body_text_color",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


SORT = """<script>
document.addEventListener('click', event => {
  const button = event.target.closest('button.sort');
  if (!button) return;
  const heading = button.closest('th'), row = heading.parentElement, body = heading.closest('table').tBodies[0];
  const place = [...row.children].indexOf(heading), down = heading.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
  const key = line => line.children[place].dataset.value;
  [...row.children].forEach(each => each.setAttribute('aria-sort', 'none'));
  heading.setAttribute('aria-sort', down > 0 ? 'ascending' : 'descending');
  const order = (a, b) => a === '' || b === '' ? (a === '') - (b === '')
    : down * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
});
</script>"""
"""A table whose headings are buttons is sorted by the one that is pressed, numbers as numbers, nothing last."""


CSS = """
.gradio-container { --up: #0072B2; --down: #D55E00; max-width: 84rem !important; padding: .75rem !important; }
.dark .gradio-container, .gradio-container.dark { --up: #56B4E9; --down: #E69F00; }
.gradio-container h1 { font-size: 1.5rem; margin: 0; }
.gradio-container .about { margin: .15rem 0 0; font-size: .9rem; color: var(--body-text-color); opacity: .85; }
.wide { overflow-x: auto; max-width: 100%; margin: .25rem 0 .75rem; }
.wide:focus-visible { outline: 2px solid var(--color-accent); }
.wide table.table { border-collapse: collapse; font-size: .875rem; margin: 0; border-width: 0; }
.wide table.table tr { border-width: 0; }
.caption { font-size: .875rem; margin: .5rem 0 .25rem; max-width: 52rem; }
.wide table.table th, .wide table.table td { padding: .3rem .6rem; border-width: 0 0 1px;
  border-style: solid; border-color: var(--border-color-primary); text-align: right;
  font-variant-numeric: tabular-nums; vertical-align: middle; }
.wide table.table th { font-weight: 600; }
.wide table.table thead th { vertical-align: bottom; }
.wide table.table tbody th, .wide table.table thead th:first-child, .wide table.words td, .wide table.words th,
.wide table.modules th:nth-last-child(-n+2), .wide table.modules td:nth-last-child(-n+2) { text-align: left; }
.wide table.modules td:nth-last-child(-n+2) { min-width: 14rem; }
.samples { display: flex; gap: 3px; }
.samples img { width: 2.4rem; height: 2.4rem; object-fit: contain; image-rendering: pixelated; border-radius: 3px; }
.wide table.heat td { text-align: center; min-width: 2.6rem; padding: .3rem .2rem;
  background: color-mix(in srgb, var(--sign) var(--share), transparent); }
.wide table.heat td.corner { background: none; font-size: .75rem; white-space: nowrap; text-align: left; }
.wide table.heat thead th { font-weight: 400; text-align: center; }
.heat thead th span { writing-mode: vertical-rl; transform: rotate(180deg); display: inline-block; }
.wide table.heat tbody th { font-weight: 400; white-space: nowrap; }
dl.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .5rem; margin: .25rem 0; }
dl.figures > div { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem .75rem; }
dl.figures dt { font-size: .85rem; } dl.figures dd { margin: 0; font-size: .85rem; }
dl.figures b { font-size: 1.5rem; font-variant-numeric: tabular-nums; display: block; }
.up, .up * { color: var(--up); } .down, .down * { color: var(--down); } .up, .down, .same { white-space: nowrap; }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.note { font-size: .875rem; margin: .25rem 0; max-width: 52rem; overflow-wrap: anywhere; }
figure.curve { margin: .5rem 0; max-width: 34rem; }
figure.curve svg { width: 100%; height: auto; overflow: visible; }
figure.curve text { font-size: 9px; fill: var(--body-text-color); }
figure.curve polyline { fill: none; stroke-width: 2; }
.dark figure.curve polyline, .dark figure.curve circle, .dark .keys line { filter: brightness(1.5); }
figure.curve .grid { stroke: var(--border-color-primary); stroke-width: 1; }
figure.curve .mark { stroke: var(--body-text-color); stroke-width: 1; stroke-dasharray: 2 2; }
figure.curve figcaption { font-size: .85rem; }
ul.keys { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; margin: 0;
  font-size: .85rem; }
ul.keys svg { width: 1.6rem; height: .5rem; margin-right: .4rem; vertical-align: middle; }
ul.keys line { stroke-width: 2; }
.answer { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem .75rem; margin: .5rem 0; }
.answer h3 { font-size: 1rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
.answer > div { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.answer img { width: 6rem; height: 6rem; object-fit: contain; image-rendering: pixelated; border-radius: 4px; }
.answer section { flex: 1 1 12rem; min-width: 0; } .answer h4 { font-size: .85rem; margin: 0; font-weight: 600; }
ol.bars { list-style: none; padding: 0; margin: .25rem 0 0; font-size: .875rem; }
ol.bars li { display: grid; grid-template-columns: 1fr auto; gap: .5rem; position: relative; padding: .15rem .4rem; }
ol.bars .bar { position: absolute; inset: 1px auto 1px 0; width: var(--share); border-radius: 3px;
  background: color-mix(in srgb, var(--up) 25%, transparent); }
ol.bars li > span { position: relative; overflow-wrap: anywhere; } ol.bars li > .bar { position: absolute; }
figure.drawn { display: inline-block; margin: .5rem 1rem .5rem 0; max-width: min(100%, 36rem); vertical-align: top; }
figure.drawn img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figure.drawn figcaption { font-size: .85rem; }
button.sort { all: unset; cursor: pointer; } button.sort:focus-visible { outline: 2px solid var(--color-accent); }
th[aria-sort=ascending] button.sort::after { content: " ▲"; }
th[aria-sort=descending] button.sort::after { content: " ▼"; }
#pictures a, #zip a { visibility: hidden; }
.save { align-items: end; }
.live { min-height: 3rem; }
footer { display: none !important; }
@media (max-width: 40rem) {
  .gradio-container { padding: .4rem !important; }
  .wide table.table th, .wide table.table td { padding: .25rem .35rem; }
  figure.curve text { font-size: 12px; }
  .samples img { width: 1.7rem; height: 1.7rem; }
}
"""
