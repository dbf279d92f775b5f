"""Engines: where, and in what order, the tasks of a stream are learned; without one, in this process one by one."""
