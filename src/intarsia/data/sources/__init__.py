"""Where images come from: a table of sources, one file each."""
