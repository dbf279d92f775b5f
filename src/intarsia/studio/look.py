"""How the page looks: the system's fonts, and the rules in ``page.css``."""

from pathlib import Path

from gradio.themes import Base

FONTS = ("system-ui", "sans-serif")


HERE = Path(__file__).parent


STYLE = HERE / "page.css"
"""The page's own few rules for tables and figures, light and dark."""


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


def head() -> str:
    """What stands in the head of the page: no icon is asked for, and tables are sorted by their headings."""
    return f'<link rel="icon" href="data:,"><script>{(HERE / "page.js").read_text()}</script>'
