"""Runtime of a run: device, processes, parallel modes, run lock, signals, console."""
