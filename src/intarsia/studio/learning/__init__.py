"""A new task from the page: its images, and the process that learns it."""
