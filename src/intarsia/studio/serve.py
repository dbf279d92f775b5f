"""The studio's server: this machine alone listens, and no request leaves it."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and later

import gradio as gr

from intarsia.errors import InputError
from intarsia.parallel.processes import alive
from intarsia.studio.look import STYLE, head, theme

LARGEST = 2**30
"""Bytes of an upload."""


def serve(blocks: gr.Blocks, uploads: Path, *, host: str, port: int | None, share: bool) -> str:
    """Start to answer; returns the address. ``blocks.block_thread()`` waits for the end.

    Args:
        blocks: the page.
        uploads: where what is dropped on the page lies while the server runs.
        host: whose requests are taken; 127.0.0.1 is this machine.
        port: of it; the first free one from 7860 if None.
        share: also lead a public address here, through gradio's own servers.

    Raises:
        InputError: the port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    blocks.queue(api_open=False)
    try:
        _, local, public = blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=LARGEST,
            theme=theme(),
            css_paths=STYLE,
            head=head(),
        )
    except OSError as error:
        raise InputError(f"--port {port}: {str(error).splitlines()[0]} Name another, or leave it out") from error
    return public or local


def tidy(home: Path) -> None:
    """Remove what servers that were killed have left of uploads."""
    for left in home.glob("uploads-*"):
        number = left.name.rpartition("-")[2]
        if number.isdecimal() and not alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):
        home.rmdir()  # if nothing is in it
