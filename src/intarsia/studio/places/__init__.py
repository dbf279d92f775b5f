"""The places of the page, a file each: what it shows, and what it asks of the session."""
