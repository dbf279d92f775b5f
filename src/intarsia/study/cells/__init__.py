"""Where the runs of a comparison are made: each in a process of its own, on this machine or on Ray."""
